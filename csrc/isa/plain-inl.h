// The dot products, multiply_block and the primitives for vectors of floats that generic/editor.h lists, for any CPU.

#pragma once

#ifndef FAQUANT_UNIT
// Instead of generic/editor.h, whose definitions are here.
#define FAQUANT_UNIT
#include "isa/kernels.h"

using namespace faquant;
#endif

#include "generic/numbers-inl.h"

int32_t dot_u8s8(const uint8_t* a, const int8_t* b, int64_t n) {
    return plain_dot(a, b, n);
}

int32_t dot_s8s8(const int8_t* a, const int8_t* b, int64_t n) {
    return plain_dot(a, b, n);
}

constexpr int64_t kColumns = kPadding;
constexpr int kMostBlocks = 1, kMostFloatBlocks = 1;

#include "generic/multiply_fours-inl.h"

template <bool packed_unsigned, int rows, int blocks>
void multiply_block(const uint8_t* a, int64_t a_stride, const uint8_t* b, int64_t b_stride, int64_t depth, bool add,
                    int32_t* c, int64_t c_stride, PrefetchSteps) {
    static_assert(blocks == 1);
    const auto* signed_a = reinterpret_cast<const int8_t*>(a);
    const auto* signed_b = reinterpret_cast<const int8_t*>(b);
    for (int r = 0; r < rows; ++r) {
        int32_t sums[4 * kColumns] = {};
        for (int64_t i = 0; i < depth; ++i) {
            for (int64_t j = 0; j < 4 * kColumns; ++j) {
                const int64_t at = r * a_stride + 4 * i + j % 4;
                sums[j] += packed_unsigned ? signed_a[at] * b[i * b_stride + j] : a[at] * signed_b[i * b_stride + j];
            }
        }
        for (int64_t j = 0; j < kColumns; ++j) {
            int32_t& out = c[r * c_stride + j];
            out = (add ? out : 0) + sums[4 * j] + sums[4 * j + 1] + sums[4 * j + 2] + sums[4 * j + 3];
        }
    }
}

template <bool packed_unsigned, int rows, int blocks>
void multiply_block(const float* a, int64_t a_stride, const uint8_t* b, int64_t b_stride, int64_t depth, bool add,
                    float* c, int64_t c_stride, PrefetchSteps) {
    static_assert(blocks == 1);
    for (int r = 0; r < rows; ++r) {
        float sums[kColumns];
        for (int64_t j = 0; j < kColumns; ++j) {
            sums[j] = add ? c[r * c_stride + j] : 0.0f;
        }
        for (int64_t i = 0; i < depth; ++i) {
            uint16_t halves[2 * kColumns];
            __builtin_memcpy(halves, b + i * b_stride, sizeof halves);
            const float first = a[r * a_stride + 2 * i], second = a[r * a_stride + 2 * i + 1];
            for (int64_t j = 0; j < kColumns; ++j) {
                sums[j] += first * float_of(uint32_t{halves[2 * j]} << 16);
            }
            for (int64_t j = 0; j < kColumns; ++j) {
                sums[j] += second * float_of(uint32_t{halves[2 * j + 1]} << 16);
            }
        }
        for (int64_t j = 0; j < kColumns; ++j) {
            c[r * c_stride + j] = sums[j];
        }
    }
}

using Floats = float __attribute__((vector_size(16)));

constexpr int64_t kFloatLanes = 4;

constexpr int float_blocks(int) {
    return 4;
}

// A vector register if the compiler supports it; the results are the same.
#if defined(__x86_64__)
#define FAQUANT_REGISTER(x) "+x"(x)
#elif defined(__aarch64__)
#define FAQUANT_REGISTER(x) "+w"(x)
#else
#define FAQUANT_REGISTER(x) "+m"(x)
#endif

Floats load_floats(const float* from) {
    Floats x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}

Floats bfloat16_of_words(const uint8_t* b, int number) {
    Floats x;
    for (int i = 0; i < kFloatLanes; ++i) {
        uint16_t halves[2];
        __builtin_memcpy(halves, b + 4 * i, sizeof halves);
        x[i] = float_of(uint32_t{halves[number]} << 16);
    }
    return x;
}

Floats first_rows(const uint8_t* b) {
    return bfloat16_of_words(b, 0);
}

Floats second_rows(const uint8_t* b) {
    return bfloat16_of_words(b, 1);
}

Floats all_lanes(float x) {
    return Floats{x, x, x, x};
}

Floats add_product(Floats sum, Floats a, Floats b) {
    for (int i = 0; i < kFloatLanes; ++i) {
        sum[i] = __builtin_fmaf(a[i], b[i], sum[i]);
    }
    return sum;
}

void store(float* to, Floats x) {
    __builtin_memcpy(to, &x, sizeof x);
}

void halves_to_floats(const uint16_t* halves, float* floats) {
    for (int64_t i = 0; i < kTile; ++i) {
        floats[i] = half_to_float(halves[i]);
    }
}
