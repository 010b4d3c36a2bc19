// Rows of floats times columns of floats, for one instruction set. A unit defines before including this file
// FAQUANT_REGISTER, Floats of kFloatLanes lanes, first_rows, second_rows, all_lanes, add_product (fused) and store as
// for multiply_floats-inl.h, load_floats, and float_blocks: how many Floats per row fit into the registers, for this
// many rows.
// Each sum adds the products in the order of the inputs, by fused multiply-adds, so that all units return the same
// bits.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/multiply_rows-inl.h"

// Rows that share the columns in the registers.
constexpr int64_t kFloatRows = 6;

Floats whole_rows(const uint8_t* b) {
    return load_floats(reinterpret_cast<const float*>(b));
}

// Columns of one row of the weight, and the sums of one row and of several. They nest like multiply_vnni-inl.h, for the
// same reasons.
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

    FAQUANT_INLINE FloatRowSums(const float* c, int64_t c_stride)
        : FloatRowSums<rows - 1, blocks>(c, c_stride), row(c + (rows - 1) * c_stride) {}

    template <Floats (*read)(const uint8_t*)>
    FAQUANT_INLINE void add(const float* x, int64_t x_stride, const FloatColumns<read, blocks>& columns) {
        FloatRowSums<rows - 1, blocks>::add(x, x_stride, columns);
        row.add(all_lanes(x[(rows - 1) * x_stride]), columns);
    }

    FAQUANT_INLINE void write(float* c, int64_t c_stride) const {
        FloatRowSums<rows - 1, blocks>::write(c, c_stride);
        row.write(c + (rows - 1) * c_stride);
    }
};

template <int blocks>
struct FloatRowSums<0, blocks> {
    FAQUANT_INLINE FloatRowSums(const float*, int64_t) {}

    template <Floats (*read)(const uint8_t*)>
    FAQUANT_INLINE void add(const float*, int64_t, const FloatColumns<read, blocks>&) {}

    FAQUANT_INLINE void write(float*, int64_t) const {}
};

// Add the products of `depth` inputs x with b to c [rows, c_stride], for some Floats of columns; a step of b is one or
// two rows in words, as described in isa/kernels.h.
template <int in_word, int rows, int blocks>
__attribute__((noinline)) void add_float_block(const float* x, int64_t x_stride, const uint8_t* b, int64_t b_stride,
                                               int64_t depth, float* c, int64_t c_stride) {
    FloatRowSums<rows, blocks> sums(c, c_stride);
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
    sums.write(c, c_stride);
}

// The matrix to multiply by any number of rows: columns, a multiple of kPadding, and their inputs.
struct FloatPanel {
    const uint8_t* b;
    int64_t b_stride;  // bytes
    int64_t width, depth;
};

template <int in_word, int rows>
void add_float_rows(const float* x, int64_t x_stride, const FloatPanel& p, float* c, int64_t c_stride) {
    constexpr int blocks = float_blocks(rows), least = kPadding / kFloatLanes;
    int64_t j = 0;
    for (; j + blocks * kFloatLanes <= p.width; j += blocks * kFloatLanes) {
        add_float_block<in_word, rows, blocks>(x, x_stride, p.b + 4 * j, p.b_stride, p.depth, c + j, c_stride);
    }
    for (; j < p.width; j += kPadding) {
        add_float_block<in_word, rows, least>(x, x_stride, p.b + 4 * j, p.b_stride, p.depth, c + j, c_stride);
    }
}

template <int in_word>
void add_float_products(const float* x, int64_t x_stride, int64_t rows, const FloatPanel& p, float* c,
                        int64_t c_stride) {
    for (; rows >= kFloatRows; rows -= kFloatRows, x += kFloatRows * x_stride, c += kFloatRows * c_stride) {
        add_float_rows<in_word, kFloatRows>(x, x_stride, p, c, c_stride);
    }
    if (rows > 0) {
        with_constant<kFloatRows - 1>(
            rows, [&](auto some) { add_float_rows<in_word, decltype(some)::value>(x, x_stride, p, c, c_stride); });
    }
}
