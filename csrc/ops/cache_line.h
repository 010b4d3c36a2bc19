#pragma once

#include <cstdint>

#include "isa/kernels.h"

namespace faquant {

// The first address on a cache line after p.
template <typename T>
T* next_line(T* p) {
    return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(p) / kCacheLine + 1) * kCacheLine);
}

}  // namespace faquant
