// multiply_panel in blocks of four rows. Units without registers for more rows define kColumns, kMostBlocks and
// kMostFloatBlocks before including this file, and afterwards both kinds of multiply_block:
//   kColumns          packed columns that multiply_block processes at a time, a divisor of kPadding
//   kMostBlocks       the best number of such blocks per call
//   kMostFloatBlocks  the same for floats

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/multiply_rows-inl.h"

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

// multiply_panel, also for units that specialize it for some products.
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
            const int64_t some = smaller(lines, next.lines / steps);
            const PrefetchSteps part = {next.take(some * steps).next, some};
            const A* four = a + r * a_stride + i * kInWord<A>;
            C* out = c + r * c_stride;
            switch (smaller(rows - r, 4)) {
                case 4:
                    multiply_four<packed_unsigned, 4>(four, a_stride, words, steps, width, i != 0, out, c_stride, part);
                    break;
                case 3:
                    multiply_four<packed_unsigned, 3>(four, a_stride, words, steps, width, i != 0, out, c_stride, part);
                    break;
                case 2:
                    multiply_four<packed_unsigned, 2>(four, a_stride, words, steps, width, i != 0, out, c_stride, part);
                    break;
                default:
                    multiply_four<packed_unsigned, 1>(four, a_stride, words, steps, width, i != 0, out, c_stride, part);
            }
        }
    }
    next.fetch(next.lines);
}

template <bool packed_unsigned, typename A, typename C>
void multiply_panel(const A* a, int64_t a_stride, int64_t rows, const uint8_t* b, int64_t depth, int64_t width, C* c,
                    int64_t c_stride, Prefetch next) {
    multiply_by_fours<packed_unsigned>(a, a_stride, rows, b, depth, width, c, c_stride, next);
}
