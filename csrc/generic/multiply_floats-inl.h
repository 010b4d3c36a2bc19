// multiply_block for floats and bfloat16. Units with fused multiply-add define the following before including this
// file, for kColumns lanes: FAQUANT_REGISTER, Floats and
//   load_floats, store
//   first_rows, second_rows  one of the two bfloat16 in each word from an address on, as floats
//   all_lanes                a float, broadcast
//   add_product              sum + a · b, fused
// It nests like multiply_vnni-inl.h, for the same reasons.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/multiply_fours-inl.h"

template <int blocks>
struct PairColumns : PairColumns<blocks - 1> {
    Floats first, second;

    FAQUANT_INLINE explicit PairColumns(const uint8_t* b)
        : PairColumns<blocks - 1>(b),
          first(first_rows(b + (blocks - 1) * 4 * kColumns)),
          second(second_rows(b + (blocks - 1) * 4 * kColumns)) {
        __asm__("" : FAQUANT_REGISTER(first), FAQUANT_REGISTER(second));
    }
};

template <>
struct PairColumns<0> {
    FAQUANT_INLINE explicit PairColumns(const uint8_t*) {}
};

template <int blocks>
struct FloatRow : FloatRow<blocks - 1> {
    Floats sums = all_lanes(0.0f);

    FAQUANT_INLINE void add(Floats first, Floats second, const PairColumns<blocks>& columns) {
        FloatRow<blocks - 1>::add(first, second, columns);
        sums = add_product(add_product(sums, first, columns.first), second, columns.second);
    }

    FAQUANT_INLINE void read(const float* c) {
        FloatRow<blocks - 1>::read(c);
        sums = load_floats(c + (blocks - 1) * kColumns);
    }

    FAQUANT_INLINE void write(float* c) const {
        FloatRow<blocks - 1>::write(c);
        store(c + (blocks - 1) * kColumns, sums);
    }
};

template <>
struct FloatRow<0> {
    FAQUANT_INLINE void add(Floats, Floats, const PairColumns<0>&) {}
    FAQUANT_INLINE void read(const float*) {}
    FAQUANT_INLINE void write(float*) const {}
};

template <int rows, int blocks>
struct FloatRows : FloatRows<rows - 1, blocks> {
    FloatRow<blocks> row;

    FAQUANT_INLINE void add(const float* a, int64_t a_stride, const PairColumns<blocks>& columns) {
        FloatRows<rows - 1, blocks>::add(a, a_stride, columns);
        const float* pair = a + (rows - 1) * a_stride;
        row.add(all_lanes(pair[0]), all_lanes(pair[1]), columns);
    }

    FAQUANT_INLINE void read(const float* c, int64_t c_stride) {
        FloatRows<rows - 1, blocks>::read(c, c_stride);
        row.read(c + (rows - 1) * c_stride);
    }

    FAQUANT_INLINE void write(float* c, int64_t c_stride) const {
        FloatRows<rows - 1, blocks>::write(c, c_stride);
        row.write(c + (rows - 1) * c_stride);
    }
};

template <int blocks>
struct FloatRows<0, blocks> {
    FAQUANT_INLINE void add(const float*, int64_t, const PairColumns<blocks>&) {}
    FAQUANT_INLINE void read(const float*, int64_t) {}
    FAQUANT_INLINE void write(float*, int64_t) const {}
};

template <bool packed_unsigned, int rows, int blocks>
__attribute__((noinline)) void multiply_block(const float* a, int64_t a_stride, const uint8_t* b, int64_t b_stride,
                                              int64_t depth, bool add, float* c, int64_t c_stride, PrefetchSteps next) {
    FloatRows<rows, blocks> sums;
    if (add) {
        sums.read(c, c_stride);
    }
    for (const float* end = a + 2 * depth; a != end; a += 2, b += b_stride) {
        next.fetch();
        sums.add(a, a_stride, PairColumns<blocks>(b));
    }
    sums.write(c, c_stride);
}
