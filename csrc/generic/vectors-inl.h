// The bits of a vector of floats, for one instruction set.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/numbers-inl.h"

using Ints = int32_t __attribute__((vector_size(sizeof(Floats))));

FAQUANT_INLINE Floats greater(Floats a, Floats b) {
    return a > b ? a : b;
}

FAQUANT_INLINE Ints bits_of(Floats x) {
    return reinterpret_cast<Ints>(x);
}

FAQUANT_INLINE Floats float_of(Ints bits) {
    return reinterpret_cast<Floats>(bits);
}
