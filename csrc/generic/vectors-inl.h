// Operations on a vector of floats, for one instruction set.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/numbers-inl.h"

using Ints = int32_t __attribute__((vector_size(sizeof(Floats))));
using Words = uint32_t __attribute__((vector_size(sizeof(Floats))));

FAQUANT_INLINE Floats greater(Floats a, Floats b) {
    return a > b ? a : b;
}

FAQUANT_INLINE Ints bits_of(Floats x) {
    return reinterpret_cast<Ints>(x);
}

FAQUANT_INLINE Floats float_of(Ints bits) {
    return reinterpret_cast<Floats>(bits);
}

// 2^x for -127 <= x <= 0, as reference.exp2.
FAQUANT_INLINE Floats exp2_of(Floats x) {
    const Floats shifted = x + kRounder;
    const Floats f = x - (shifted - kRounder);
    Floats p = f * 0.001326472731307149f;
    p = (p + 0.009671512991189957f) * f;
    p = (p + 0.05550733581185341f) * f;
    p = (p + 0.24022242426872253f) * f;
    p = (p + 0.6931470036506653f) * f;
    p = p + 1.0f;
    return p * float_of((bits_of(shifted) - (kRounderBits - 127)) << 23);
}
