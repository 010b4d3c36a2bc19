// multiply_block with vpdpbusd. Before including this file, units define Vector, load (of bytes and of int32), store,
// in_all_lanes and add_products for kColumns lanes, and FAQUANT_REGISTER, the operand constraint for an assembly
// statement that modifies a Vector.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/multiply_fours-inl.h"

int32_t four_bytes(const uint8_t* x) {
    int32_t bytes;
    __builtin_memcpy(&bytes, x, sizeof bytes);
    return bytes;
}

// Sums of products, and their columns. Nested structs, because GCC 12 keeps arrays of vectors in memory.
template <int blocks>
struct Columns : Columns<blocks - 1> {
    Vector bytes;

    FAQUANT_INLINE explicit Columns(const uint8_t* b)
        : Columns<blocks - 1>(b), bytes(load(b + (blocks - 1) * 4 * kColumns)) {
        // Otherwise they are reloaded for every row.
        __asm__("" : FAQUANT_REGISTER(bytes));
    }
};

template <>
struct Columns<0> {
    FAQUANT_INLINE explicit Columns(const uint8_t*) {}
};

template <bool packed_unsigned, int blocks>
struct RowSums : RowSums<packed_unsigned, blocks - 1> {
    using Others = RowSums<packed_unsigned, blocks - 1>;
    Vector sums = in_all_lanes(0);

    FAQUANT_INLINE void add(Vector row, const Columns<blocks>& columns) {
        Others::add(row, columns);
        sums = packed_unsigned ? add_products(sums, columns.bytes, row) : add_products(sums, row, columns.bytes);
    }

    FAQUANT_INLINE void read(const int32_t* c) {
        Others::read(c);
        sums = load(c + (blocks - 1) * kColumns);
    }

    FAQUANT_INLINE void write(int32_t* c) const {
        Others::write(c);
        store(c + (blocks - 1) * kColumns, sums);
    }
};

template <bool packed_unsigned>
struct RowSums<packed_unsigned, 0> {
    FAQUANT_INLINE void add(Vector, const Columns<0>&) {}
    FAQUANT_INLINE void read(const int32_t*) {}
    FAQUANT_INLINE void write(int32_t*) const {}
};

template <bool packed_unsigned, int rows, int blocks>
struct BlockSums : BlockSums<packed_unsigned, rows - 1, blocks> {
    using Others = BlockSums<packed_unsigned, rows - 1, blocks>;
    RowSums<packed_unsigned, blocks> row;

    FAQUANT_INLINE void add(const uint8_t* a, int64_t a_stride, const Columns<blocks>& columns) {
        Others::add(a, a_stride, columns);
        row.add(in_all_lanes(four_bytes(a + (rows - 1) * a_stride)), columns);
    }

    FAQUANT_INLINE void read(const int32_t* c, int64_t c_stride) {
        Others::read(c, c_stride);
        row.read(c + (rows - 1) * c_stride);
    }

    FAQUANT_INLINE void write(int32_t* c, int64_t c_stride) const {
        Others::write(c, c_stride);
        row.write(c + (rows - 1) * c_stride);
    }
};

template <bool packed_unsigned, int blocks>
struct BlockSums<packed_unsigned, 0, blocks> {
    FAQUANT_INLINE void add(const uint8_t*, int64_t, const Columns<blocks>&) {}
    FAQUANT_INLINE void read(const int32_t*, int64_t) {}
    FAQUANT_INLINE void write(int32_t*, int64_t) const {}
};

// Not inlined, because GCC then runs out of registers in its loop.
template <bool packed_unsigned, int rows, int blocks>
__attribute__((noinline)) void multiply_block(const uint8_t* a, int64_t a_stride, const uint8_t* b, int64_t b_stride,
                                              int64_t depth, bool add, int32_t* c, int64_t c_stride,
                                              PrefetchSteps next) {
    BlockSums<packed_unsigned, rows, blocks> sums;
    if (add) {
        sums.read(c, c_stride);
    }
    for (const uint8_t* end = a + 4 * depth; a != end; a += 4, b += b_stride) {
        next.fetch();
        sums.add(a, a_stride, Columns<blocks>(b));
    }
    sums.write(c, c_stride);
}
