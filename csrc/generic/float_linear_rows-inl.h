// Linears of float weights, for one instruction set. A unit defines before this text FAQUANT_REGISTER, Floats of
// kFloatLanes lanes, first_rows, second_rows, all_lanes, add_product (fused) and store as for multiply_floats-inl.h,
// load_floats, and float_blocks: of how many Floats in each of so many rows the sums fit into the registers.
//
// Each output is the fused sum of the products in the order of the inputs, so that all units agree.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/multiply_rows-inl.h"
#include "generic/numbers-inl.h"

// Rows that share the columns in the registers.
constexpr int64_t kFloatRows = 6;
// Rows that share a piece of a panel in the second-level cache, and the inputs of that piece.
constexpr int64_t kFloatStrip = 16 * kFloatRows, kFloatDepth = 256;

Floats whole_rows(const uint8_t* b) {
    return load_floats(reinterpret_cast<const float*>(b));
}

// Columns of one row of the weight, and the sums of one row and of several. They nest as multiply_vnni-inl.h does, and
// for the same reasons.
template <Floats (*read)(const uint8_t*), int blocks>
struct FloatColumns : FloatColumns<read, blocks - 1> {
    Floats column;

    FAQUANT_INLINE explicit FloatColumns(const uint8_t* b)
        : FloatColumns<read, blocks - 1>(b), column(read(b + (blocks - 1) * 4 * kFloatLanes)) {
        __asm__("" : FAQUANT_REGISTER(column));
    }
};

template <Floats (*read)(const uint8_t*)>
struct FloatColumns<read, 0> {
    FAQUANT_INLINE explicit FloatColumns(const uint8_t*) {}
};

template <int blocks>
struct FloatSums : FloatSums<blocks - 1> {
    Floats sums;

    FAQUANT_INLINE explicit FloatSums(const float* c)
        : FloatSums<blocks - 1>(c), sums(load_floats(c + (blocks - 1) * kFloatLanes)) {}

    template <Floats (*read)(const uint8_t*)>
    FAQUANT_INLINE void add(Floats x, const FloatColumns<read, blocks>& columns) {
        FloatSums<blocks - 1>::add(x, static_cast<const FloatColumns<read, blocks - 1>&>(columns));
        sums = add_product(sums, x, columns.column);
    }

    FAQUANT_INLINE void write(float* c) const {
        FloatSums<blocks - 1>::write(c);
        store(c + (blocks - 1) * kFloatLanes, sums);
    }
};

template <>
struct FloatSums<0> {
    FAQUANT_INLINE explicit FloatSums(const float*) {}

    template <Floats (*read)(const uint8_t*)>
    FAQUANT_INLINE void add(Floats, const FloatColumns<read, 0>&) {}

    FAQUANT_INLINE void write(float*) const {}
};

template <int rows, int blocks>
struct FloatRowSums : FloatRowSums<rows - 1, blocks> {
    FloatSums<blocks> row;

    FAQUANT_INLINE explicit FloatRowSums(const float* c)
        : FloatRowSums<rows - 1, blocks>(c), row(c + (rows - 1) * kPanel) {}

    template <Floats (*read)(const uint8_t*)>
    FAQUANT_INLINE void add(const float* x, int64_t x_stride, const FloatColumns<read, blocks>& columns) {
        FloatRowSums<rows - 1, blocks>::add(x, x_stride, columns);
        row.add(all_lanes(x[(rows - 1) * x_stride]), columns);
    }

    FAQUANT_INLINE void write(float* c) const {
        FloatRowSums<rows - 1, blocks>::write(c);
        row.write(c + (rows - 1) * kPanel);
    }
};

template <int blocks>
struct FloatRowSums<0, blocks> {
    FAQUANT_INLINE explicit FloatRowSums(const float*) {}

    template <Floats (*read)(const uint8_t*)>
    FAQUANT_INLINE void add(const float*, int64_t, const FloatColumns<read, blocks>&) {}

    FAQUANT_INLINE void write(float*) const {}
};

// Add to c [rows, kPanel] the products of `depth` inputs x with b [words, b_stride / 4], for some Floats of columns.
template <int in_word, int rows, int blocks>
__attribute__((noinline)) void add_float_block(const float* x, int64_t x_stride, const uint8_t* b, int64_t b_stride,
                                               int64_t depth, float* c) {
    FloatRowSums<rows, blocks> sums(c);
    const float* end = x + depth;
    if constexpr (in_word == 1) {
        for (; x != end; ++x, b += b_stride) {
            sums.add(x, x_stride, FloatColumns<whole_rows, blocks>(b));
        }
    } else {
        for (; end - x >= 2; x += 2, b += b_stride) {
            sums.add(x, x_stride, FloatColumns<first_rows, blocks>(b));
            sums.add(x + 1, x_stride, FloatColumns<second_rows, blocks>(b));
        }
        if (x != end) {
            sums.add(x, x_stride, FloatColumns<first_rows, blocks>(b));
        }
    }
    sums.write(c);
}

// The same for all columns of a panel.
template <int in_word, int rows>
void add_float_rows(const float* x, int64_t x_stride, const uint8_t* b, int64_t width, int64_t depth, float* c) {
    constexpr int blocks = float_blocks(rows), least = kPadding / kFloatLanes;
    int64_t j = 0;
    for (; j + blocks * kFloatLanes <= width; j += blocks * kFloatLanes) {
        add_float_block<in_word, rows, blocks>(x, x_stride, b + 4 * j, 4 * width, depth, c + j);
    }
    for (; j < width; j += kPadding) {
        add_float_block<in_word, rows, least>(x, x_stride, b + 4 * j, 4 * width, depth, c + j);
    }
}

// The same for any number of rows.
template <int in_word>
void add_float_strip(const float* x, int64_t x_stride, int64_t rows, const uint8_t* b, int64_t width, int64_t depth,
                     float* c) {
    for (; rows >= kFloatRows; rows -= kFloatRows, x += kFloatRows * x_stride, c += kFloatRows * kPanel) {
        add_float_rows<in_word, kFloatRows>(x, x_stride, b, width, depth, c);
    }
    switch (rows) {
        case 5:
            return add_float_rows<in_word, 5>(x, x_stride, b, width, depth, c);
        case 4:
            return add_float_rows<in_word, 4>(x, x_stride, b, width, depth, c);
        case 3:
            return add_float_rows<in_word, 3>(x, x_stride, b, width, depth, c);
        case 2:
            return add_float_rows<in_word, 2>(x, x_stride, b, width, depth, c);
        case 1:
            return add_float_rows<in_word, 1>(x, x_stride, b, width, depth, c);
        default:
            return;
    }
}

template <int in_word>
void float_panels_of(const FloatLinear& l, const void* weight, const float* x, int64_t rows, int64_t first,
                     int64_t last, float* out) {
    alignas(64) float sums[kFloatStrip * kPanel];
    const int64_t words = (l.inputs + in_word - 1) / in_word;
    for (int64_t column = first * kPanel; column < smaller(last * kPanel, l.outputs); column += kPanel) {
        const auto* panel = static_cast<const uint8_t*>(weight) + column * words * 4;
        const int64_t width = smaller(kPanel, padded_outputs(l.outputs) - column);
        const int64_t count = smaller(kPanel, l.outputs - column);
        for (int64_t r = 0; r < rows; r += kFloatStrip) {
            const int64_t some = smaller(kFloatStrip, rows - r);
            const int64_t depth = some <= kFloatRows ? l.inputs : kFloatDepth;
            for (int64_t i = 0; i < some * kPanel; ++i) {
                sums[i] = 0.0f;
            }
            for (int64_t k = 0; k < l.inputs; k += depth) {
                add_float_strip<in_word>(x + r * l.inputs + k, l.inputs, some, panel + k / in_word * width * 4, width,
                                         smaller(depth, l.inputs - k), sums);
            }
            for (int64_t i = 0; i < some; ++i) {
                const float* __restrict from = sums + i * kPanel;
                float* __restrict y = out + (r + i) * l.outputs + column;
                for (int64_t c = 0; c < count; ++c) {
                    y[c] = l.bias == nullptr ? from[c] : from[c] + l.bias[column + c];
                }
            }
        }
    }
}

void float_panels(const FloatLinear& linear, const float* x, int64_t rows, int64_t first, int64_t last, float* out) {
    if (linear.weight != nullptr) {
        float_panels_of<1>(linear, linear.weight, x, rows, first, last, out);
    } else {
        float_panels_of<2>(linear, linear.bfloat16_weight, x, rows, first, last, out);
    }
}
