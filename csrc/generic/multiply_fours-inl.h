// multiply_panel in blocks of four rows. Units define the following before including this file, and afterwards the
// kinds of multiply_block that they use:
//   kColumns          packed columns that multiply_block processes at a time, a divisor of kPadding
//   kMostBlocks       the best number of such blocks per call
//   kMostFloatBlocks  the same for floats

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/multiply_rows-inl.h"

// The most words of a panel's columns that all rows are multiplied by before the next ones, so that they are read from
// the L1 cache by all rows but the first ones.
constexpr int64_t kDepthAtOnce = 80;

// As multiply_panel, for `rows` (1 to 4) rows and blocks · kColumns columns of b [depth, b_stride / 4, kInWord]. The
// sums are added to c if `add`. Calls next.fetch() for each i.
template <bool packed_unsigned, int rows, int blocks>
void multiply_block(const uint8_t* a, int64_t a_stride, const uint8_t* b, int64_t b_stride, int64_t depth, bool add,
                    int32_t* c, int64_t c_stride, PrefetchSteps next);

template <bool packed_unsigned, int rows, int blocks>
void multiply_block(const float* a, int64_t a_stride, const uint8_t* b, int64_t b_stride, int64_t depth, bool add,
                    float* c, int64_t c_stride, PrefetchSteps next);

template <bool packed_unsigned, int rows, typename A, typename C>
void multiply_four(const A* a, int64_t a_stride, const uint8_t* b, int64_t depth, int64_t width, bool add, C* c,
                   int64_t c_stride, PrefetchSteps next) {
    constexpr int blocks = sizeof(A) == 1 ? kMostBlocks : kMostFloatBlocks;
    int64_t j = 0;
    for (; j + blocks * kColumns <= width; j += blocks * kColumns) {
        // A constant if the unit can compute a whole panel at once.
        const int64_t b_stride = blocks * kColumns == kPanel ? 4 * kPanel : 4 * width;
        multiply_block<packed_unsigned, rows, blocks>(a, a_stride, b + 4 * j, b_stride, depth, add, c + j, c_stride,
                                                      next);
        next.lines = 0;  // once is enough
    }
    for (; j < width; j += kColumns) {
        multiply_block<packed_unsigned, rows, 1>(a, a_stride, b + 4 * j, 4 * width, depth, add, c + j, c_stride, next);
        next.lines = 0;
    }
}

// The generic multiply_panel; units with an own one call it for few rows.
template <bool packed_unsigned, typename A, typename C>
void multiply_by_fours(const A* a, int64_t a_stride, int64_t rows, const uint8_t* b, int64_t depth, int64_t width, C* c,
                       int64_t c_stride, Prefetch next) {
    const int64_t total = (rows + 3) / 4 * depth, lines = (next.lines + total - 1) / total;
    const int64_t parts = rows <= 4 ? 1 : (depth + kDepthAtOnce - 1) / kDepthAtOnce;
    const int64_t at_once = (depth + parts - 1) / parts;
    for (int64_t i = 0; i < depth; i += at_once) {
        const int64_t steps = smaller(at_once, depth - i);
        const uint8_t* words = b + i * 4 * width;
        for (int64_t r = 0; r < rows; r += 4) {
            const PrefetchSteps part = next.over(steps, lines);
            with_constant<4>(smaller(rows - r, 4), [&](auto some) {
                multiply_four<packed_unsigned, decltype(some)::value>(a + r * a_stride + i * kInWord<A>, a_stride,
                                                                      words, steps, width, i != 0, c + r * c_stride,
                                                                      c_stride, part);
            });
        }
    }
    next.fetch();
}

template <bool packed_unsigned, typename A, typename C>
void multiply_panel(const A* a, int64_t a_stride, int64_t rows, const uint8_t* b, int64_t depth, int64_t width, C* c,
                    int64_t c_stride, Prefetch next) {
    multiply_by_fours<packed_unsigned>(a, a_stride, rows, b, depth, width, c, c_stride, next);
}
