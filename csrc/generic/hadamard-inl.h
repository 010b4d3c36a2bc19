// The Hadamard transform of a row, for one instruction set.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/numbers-inl.h"
#include "generic/vectors-inl.h"

// The numbers 0, …, n - 1 of a vector's lanes.
template <int... lanes>
struct Lanes {};

template <int n, int... lanes>
struct LanesUpTo : LanesUpTo<n - 1, n - 1, lanes...> {};

template <int... lanes>
struct LanesUpTo<0, lanes...> {
    using Type = Lanes<lanes...>;
};

// (a, b) → (a + b, a - b) for all pairs of lanes that are `half` apart.
template <int half, int... lanes>
FAQUANT_INLINE Floats add_lanes(Floats x, Lanes<lanes...>) {
    constexpr Ints signs = {((lanes & half) != 0 ? INT32_MIN : 0)...};
#ifdef __clang__
    const Floats partners = __builtin_shufflevector(x, x, (lanes ^ half)...);
#else
    const Floats partners = __builtin_shuffle(x, Ints{(lanes ^ half)...});
#endif
    return partners + float_of(bits_of(x) ^ signs);
}

// The transform of `size` elements without its unit, for a power of two of whole vectors that registers hold.
template <int64_t size>
FAQUANT_INLINE void transform_in_registers(float* x) {
    constexpr int64_t kCount = size / kFloatLanes;
    using All = typename LanesUpTo<kFloatLanes>::Type;
    Floats y[kCount];
    FAQUANT_UNROLL
    for (int64_t i = 0; i < kCount; ++i) {
        Floats some = add_lanes<1>(load_floats(x + i * kFloatLanes), All());
        some = add_lanes<2>(some, All());
        if constexpr (kFloatLanes > 4) {
            some = add_lanes<4>(some, All());
        }
        if constexpr (kFloatLanes > 8) {
            some = add_lanes<8>(some, All());
        }
        y[i] = some;
    }
    FAQUANT_UNROLL
    for (int64_t half = 1; half < kCount; half *= 2) {
        FAQUANT_UNROLL
        for (int64_t i = 0; i < kCount; ++i) {
            if ((i & half) == 0) {
                const Floats a = y[i], b = y[i + half];
                y[i] = a + b;
                y[i + half] = a - b;
            }
        }
    }
    FAQUANT_UNROLL
    for (int64_t i = 0; i < kCount; ++i) {
        store(x + i * kFloatLanes, y[i]);
    }
}

// (a, b) → (a + b, a - b) for pairs `half` apart, `together` of them at a time.
template <int64_t together>
void butterflies(float* x, int64_t dim, int64_t half) {
    for (int64_t i = 0; i < dim; i += 2 * half) {
        for (int64_t k = i; k < i + half; k += together) {
            float* __restrict low = x + k;
            float* __restrict high = x + k + half;
            for (int64_t j = 0; j < together; ++j) {
                const float a = low[j], b = high[j];
                low[j] = a + b;
                high[j] = a - b;
            }
        }
    }
}

// The number of elements whose transform fits into registers.
constexpr int64_t kInRegisters = 64;

// quantizers.hadamard of x [dim], in place.
void hadamard(float* x, int64_t dim, int64_t block) {
    if (block >= kInRegisters) {
        for (int64_t i = 0; i < dim; i += kInRegisters) {
            transform_in_registers<kInRegisters>(x + i);
        }
        for (int64_t half = kInRegisters; half < block; half *= 2) {
            butterflies<kLanes>(x, dim, half);
        }
    } else if (block >= kLanes) {
        for (int64_t i = 0; i < dim; i += kLanes) {
            transform_in_registers<kLanes>(x + i);
        }
        for (int64_t half = kLanes; half < block; half *= 2) {
            butterflies<kLanes>(x, dim, half);
        }
    } else {
        for (int64_t half = 1; half < block; half *= 2) {
            butterflies<1>(x, dim, half);
        }
    }
    const float unit = inverse_sqrt_of(block);
    for (int64_t i = 0; i < dim; ++i) {
        x[i] *= unit;
    }
}
