// Numbers and their bits, without inline functions of the library, which units must not use.

#pragma once

#ifndef FAQUANT_UNIT
#include <cstdint>
#endif

#define FAQUANT_INLINE __attribute__((always_inline)) inline
// Before loops over arrays of vectors, which stay in memory otherwise.
#define FAQUANT_UNROLL _Pragma("GCC unroll 32")

constexpr float kInfinity = __builtin_inff();
// Adding 1.5 · 2^23 rounds to an integer, halves to even, which is then in the lowest bits.
constexpr float kRounder = 12582912.0f;
constexpr int32_t kRounderBits = 0x4b400000;

// Elements that loops over rows process together.
constexpr int64_t kLanes = 16;

uint32_t bits_of(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

float float_of(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

float greater(float a, float b) {
    return a > b ? a : b;
}

double greater(double a, double b) {
    return a > b ? a : b;
}

float lesser(float a, float b) {
    return a < b ? a : b;
}

int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

// Converts a finite float16, exactly even if the process flushes subnormal floats to zero.
float half_to_float(uint16_t half) {
    const uint32_t bits = half;
    const float size = (bits & 0x7c00u) == 0 ? static_cast<float>(bits & 0x3ffu) * 0x1p-24f
                                             : float_of(((bits & 0x7fffu) << 13) + (112u << 23));
    return float_of((bits & 0x8000u) << 16 | bits_of(size));
}

// The least float16 that is at least x, for x in [2^-24, 65504].
uint16_t half_above(float x) {
    if (x < 0x1p-14f) {
        const float steps = x * 0x1p24f;
        const auto whole = static_cast<int32_t>(steps);
        return static_cast<uint16_t>(whole + (static_cast<float>(whole) < steps));
    }
    return static_cast<uint16_t>((bits_of(x) + 0x1fffu - (112u << 23)) >> 13);
}

float inverse_sqrt_of(int64_t x) {
    return static_cast<float>(1.0 / __builtin_sqrt(static_cast<double>(x)));
}

int8_t byte_of(float rounded_by_adding) {
    return static_cast<int8_t>(static_cast<int32_t>(bits_of(rounded_by_adding)));
}

// A number as a type.
template <int n>
struct Constant {
    static constexpr int value = n;
};

// Calls `work` with the Constant of a number from 1 to `most`.
template <int most, typename Work>
FAQUANT_INLINE void with_constant(int64_t number, const Work& work) {
    if constexpr (most > 1) {
        if (number < most) {
            with_constant<most - 1>(number, work);
            return;
        }
    }
    work(Constant<most>());
}

// ∑ a[i] · b[i].
template <typename A>
int32_t plain_dot(const A* a, const int8_t* b, int64_t n) {
    int32_t sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        sum += static_cast<int32_t>(a[i]) * static_cast<int32_t>(b[i]);
    }
    return sum;
}
