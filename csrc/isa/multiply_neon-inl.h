// multiply_panel and dot_s8s8 with NEON and sdot. After including this file, units define dot_u8s8 and
//   Sums      of up to kRowsAtOnce rows of a with `vectors` vectors of columns of b; `add` adds the products of four
//             words of each
//   start_of  what the sums of a row begin with

#pragma once

#ifndef FAQUANT_UNIT
#include <arm_neon.h>

#include "generic/editor.h"
#endif

#include "generic/multiply_fours-inl.h"

int32_t dot_s8s8(const int8_t* a, const int8_t* b, int64_t n) {
    int32x4_t sums = vdupq_n_s32(0);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        sums = vdotq_s32(sums, vld1q_s8(a + i), vld1q_s8(b + i));
    }
    return vaddvq_s32(sums) + plain_dot(a + i, b + i, n - i);
}

// Words that `add` takes from each row: one register.
constexpr int64_t kWordsAtOnce = 4;
// Rows that share the columns in the registers.
constexpr int64_t kRowsAtOnce = 8;
// Columns per vector, and vectors of which every width is a multiple.
constexpr int kInVector = 4, kLeastVectors = kPadding / kInVector;

// At most 16 sums, which leaves registers for their operands.
constexpr int vectors_of(int rows) {
    return rows == 1 ? 16 : rows == 2 ? 8 : rows <= 4 ? 4 : 2;
}

// The addresses of columns in four successive words.
struct FourWords {
    const uint8_t* at[kWordsAtOnce];
};

template <bool packed_unsigned, int rows, int vectors>
struct Sums;

#ifndef FAQUANT_UNIT
template <bool packed_unsigned, int rows, int vectors>
struct Sums {
    explicit Sums(const int32_t* starts);
    void add(const uint8_t* a, int64_t a_stride, const FourWords& words);
    void write(int32_t* c, int64_t c_stride) const;
};
#endif

template <bool packed_unsigned>
int32_t start_of(const uint8_t* a, int64_t depth);

// As multiply_panel, for vectors · kInVector columns of b [depth, b_stride / 4, 4]. Calls next.fetch() for each four
// words.
template <bool packed_unsigned, int rows, int vectors>
__attribute__((noinline)) void neon_multiply_block(const uint8_t* a, int64_t a_stride, const uint8_t* b,
                                                   int64_t b_stride, int64_t depth, const int32_t* starts, int32_t* c,
                                                   int64_t c_stride, PrefetchSteps next) {
    Sums<packed_unsigned, rows, vectors> sums(starts);
    int64_t left = depth;
    for (; left >= kWordsAtOnce; left -= kWordsAtOnce) {
        next.fetch();
        sums.add(a, a_stride, {{b, b + b_stride, b + 2 * b_stride, b + 3 * b_stride}});
        a += 4 * kWordsAtOnce;
        b += kWordsAtOnce * b_stride;
    }
    if (left > 0) {
        // The missing words of the rows are zeros, so any columns will do: the last ones that exist.
        uint8_t last[rows][4 * kWordsAtOnce] = {};
        for (int r = 0; r < rows; ++r) {
            for (int64_t i = 0; i < 4 * left; ++i) {
                last[r][i] = a[r * a_stride + i];
            }
        }
        const uint8_t* end = b + (left - 1) * b_stride;
        sums.add(last[0], 4 * kWordsAtOnce, {{b, left > 1 ? b + b_stride : end, end, end}});
    }
    sums.write(c, c_stride);
}

template <bool packed_unsigned, int rows>
void neon_multiply_rows(const uint8_t* a, int64_t a_stride, const uint8_t* b, int64_t depth, int64_t width, int32_t* c,
                        int64_t c_stride, PrefetchSteps next) {
    constexpr int vectors = vectors_of(rows), least = vectors < kLeastVectors ? vectors : kLeastVectors;
    int32_t starts[rows];
    for (int r = 0; r < rows; ++r) {
        starts[r] = start_of<packed_unsigned>(a + r * a_stride, depth);
    }
    int64_t j = 0;
    for (; j + vectors * kInVector <= width; j += vectors * kInVector) {
        neon_multiply_block<packed_unsigned, rows, vectors>(a, a_stride, b + 4 * j, 4 * width, depth, starts, c + j,
                                                            c_stride, next);
        next.lines = 0;  // once is enough
    }
    for (; j < width; j += least * kInVector) {
        neon_multiply_block<packed_unsigned, rows, least>(a, a_stride, b + 4 * j, 4 * width, depth, starts, c + j,
                                                          c_stride, next);
        next.lines = 0;
    }
}

template <bool packed_unsigned>
void neon_multiply_panel(const uint8_t* a, int64_t a_stride, int64_t rows, const uint8_t* b, int64_t depth,
                         int64_t width, int32_t* c, int64_t c_stride, Prefetch next) {
    const int64_t loops = depth / kWordsAtOnce, steps = larger(1, (rows + kRowsAtOnce - 1) / kRowsAtOnce * loops);
    const int64_t lines = (next.lines + steps - 1) / steps;
    for (int64_t r = 0; r < rows; r += kRowsAtOnce) {
        const PrefetchSteps part = loops == 0 ? PrefetchSteps{} : next.over(loops, lines);
        with_constant<kRowsAtOnce>(smaller(rows - r, kRowsAtOnce), [&](auto some) {
            neon_multiply_rows<packed_unsigned, decltype(some)::value>(a + r * a_stride, a_stride, b, depth, width,
                                                                       c + r * c_stride, c_stride, part);
        });
    }
    next.fetch();
}

template <>
void multiply_panel<false>(const uint8_t* a, int64_t a_stride, int64_t rows, const uint8_t* b, int64_t depth,
                           int64_t width, int32_t* c, int64_t c_stride, Prefetch next) {
    neon_multiply_panel<false>(a, a_stride, rows, b, depth, width, c, c_stride, next);
}

template <>
void multiply_panel<true>(const uint8_t* a, int64_t a_stride, int64_t rows, const uint8_t* b, int64_t depth,
                          int64_t width, int32_t* c, int64_t c_stride, Prefetch next) {
    neon_multiply_panel<true>(a, a_stride, rows, b, depth, width, c, c_stride, next);
}
