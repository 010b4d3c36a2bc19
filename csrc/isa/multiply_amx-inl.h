// multiply_panel with tiles, for at least kAmxRows rows and kAmxWords words of depth; by fours for fewer. Before
// including this file, units include the tiles' operations (amx_tiles-inl.h) and multiply_fours-inl.h.
//
// The packed layout is the one that a tile of columns needs: each line of it has kAmxWords words of a panel's line. All
// tiles are whole. The last rows are multiplied with those before them, whose sums are then computed twice, with equal
// results; the last words likewise, but with zeros in a where the words before have been counted.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#include "isa/amx_tiles-inl.h"
#endif

#include "generic/multiply_fours-inl.h"

template <>
struct Multiplying<uint8_t> {
    const bool uses_tiles;

    // Each time, because other libraries use the thread's tiles in other shapes.
    explicit Multiplying(int64_t rows) : uses_tiles(rows >= kAmxRows) {
        if (uses_tiles) {
            amx_configure();
        }
    }
    // Switching between threads takes longer while tiles are in use.
    ~Multiplying() {
        if (uses_tiles) {
            amx_release();
        }
    }
    Multiplying(const Multiplying&) = delete;
    Multiplying& operator=(const Multiplying&) = delete;
};

constexpr int64_t kAmxRowBytes = 4 * kAmxWords;  // bytes in a row of a tile

// Words of a panel's columns that two tiles of rows are multiplied by before the next ones, so that these rows are read
// from the L1 cache by all columns but the first ones. A multiple of kAmxWords.
constexpr int64_t kAmxDepthAtOnce = 128;

// The last kAmxWords words of up to two tiles of rows, zeros where whole tiles of words have been counted.
struct AmxLastWords {
    alignas(64) uint8_t bytes[2 * kAmxRows * kAmxRowBytes];

    void copy(const uint8_t* a, int64_t a_stride, int64_t rows, int64_t depth) {
        const int64_t counted = kAmxWords - depth % kAmxWords;
        for (int64_t r = 0; r < rows; ++r) {
            int32_t words[kAmxWords];
            __builtin_memcpy(words, a + r * a_stride + 4 * (depth - kAmxWords), sizeof words);
            for (int64_t i = 0; i < kAmxWords; ++i) {
                words[i] = i < counted ? 0 : words[i];
            }
            __builtin_memcpy(bytes + r * kAmxRowBytes, words, sizeof words);
        }
    }
};

// One or two tiles of rows times some columns.
struct AmxProduct {
    const uint8_t* a;
    int64_t a_stride;
    int64_t second;  // where the second tile's rows start, kAmxRows or less
    const uint8_t* b;
    int64_t b_stride;
    int64_t steps;          // whole tiles of words
    const uint8_t* a_last;  // AmxLastWords, or null
    const uint8_t* b_last;  // their columns
    bool add;               // to the sums in c
    int32_t* c;
    int64_t c_stride;
    PrefetchSteps next;  // fetched in each step
};

// Tiles 0 to 3 hold the sums, 4 the rows, 5 the second tile of rows if there are two, and the others the columns.
template <bool packed_unsigned, int row_tiles, int column_tiles, int column = 0>
FAQUANT_INLINE void amx_add_columns(const uint8_t* b, int64_t b_stride) {
    if constexpr (column < column_tiles) {
        constexpr int kColumnTile = row_tiles == 2 ? 6 + column : 5 + column % 3;
        amx_load<kColumnTile, kAmxRowBytes * column>(b, b_stride);
        amx_add_products<packed_unsigned, column, 4, kColumnTile>();
        if constexpr (row_tiles == 2) {
            amx_add_products<packed_unsigned, 2 + column, 5, kColumnTile>();
        }
        amx_add_columns<packed_unsigned, row_tiles, column_tiles, column + 1>(b, b_stride);
    }
}

// The tiles of sums of one tile of rows, from `first` on.
template <int first, int column_tiles, int column = 0>
FAQUANT_INLINE void amx_start_sums(bool add, const int32_t* c, int64_t c_stride) {
    if constexpr (column < column_tiles) {
        if (add) {
            amx_load<first + column, kAmxRowBytes * column>(c, 4 * c_stride);
        } else {
            amx_zero<first + column>();
        }
        amx_start_sums<first, column_tiles, column + 1>(add, c, c_stride);
    }
}

template <int first, int column_tiles, int column = 0>
FAQUANT_INLINE void amx_store_sums(int32_t* c, int64_t c_stride) {
    if constexpr (column < column_tiles) {
        amx_store<first + column, kAmxRowBytes * column>(c, 4 * c_stride);
        amx_store_sums<first, column_tiles, column + 1>(c, c_stride);
    }
}

template <bool packed_unsigned, int row_tiles, int column_tiles>
__attribute__((noinline)) void amx_multiply(const AmxProduct& product) {
    // Copies, which stay in registers; what is in memory is read again after each operation on tiles.
    const uint8_t *a = product.a, *b = product.b, *second = a + product.second * product.a_stride;
    const int64_t a_stride = product.a_stride, b_stride = product.b_stride, c_stride = product.c_stride;
    int32_t *c = product.c, *c_second = c + product.second * c_stride;
    const bool add = product.add;
    PrefetchSteps next = product.next;
    // The tiles of rows may overlap: all sums are read before any are stored.
    amx_start_sums<0, column_tiles>(add, c, c_stride);
    if constexpr (row_tiles == 2) {
        amx_start_sums<2, column_tiles>(add, c_second, c_stride);
    }
    for (int64_t left = product.steps; left > 0; --left) {
        next.fetch();
        amx_load<4, 0>(a, a_stride);
        if constexpr (row_tiles == 2) {
            amx_load<5, 0>(second, a_stride);
        }
        amx_add_columns<packed_unsigned, row_tiles, column_tiles>(b, b_stride);
        a += kAmxRowBytes;
        second += kAmxRowBytes;
        b += kAmxWords * b_stride;
    }
    if (product.a_last != nullptr) {
        amx_load<4, 0>(product.a_last, kAmxRowBytes);
        if constexpr (row_tiles == 2) {
            amx_load<5, 0>(product.a_last + product.second * kAmxRowBytes, kAmxRowBytes);
        }
        amx_add_columns<packed_unsigned, row_tiles, column_tiles>(product.b_last, b_stride);
    }
    amx_store_sums<0, column_tiles>(c, c_stride);
    if constexpr (row_tiles == 2) {
        amx_store_sums<2, column_tiles>(c_second, c_stride);
    }
}

// As multiply_panel, for one or two tiles of rows.
template <bool packed_unsigned>
void amx_multiply_rows(const uint8_t* a, int64_t a_stride, int64_t rows, const uint8_t* b, int64_t depth, int64_t width,
                       int32_t* c, int64_t c_stride, Prefetch& next, int64_t lines) {
    const bool has_two = rows > kAmxRows;
    const int64_t whole = depth / kAmxWords * kAmxWords;
    AmxLastWords last;
    if (whole < depth) {
        last.copy(a, a_stride, rows, depth);
    }
    // All sums of one tile's rows stay in tiles.
    const int64_t at_once = has_two ? kAmxDepthAtOnce : depth, columns_at_once = has_two ? 2 * kAmxWords : kPanel;
    for (int64_t i = 0; i < whole; i += at_once) {
        const int64_t steps = smaller(at_once, whole - i) / kAmxWords;
        const bool is_last = i + at_once >= whole && whole < depth;
        for (int64_t j = 0; j < width; j += columns_at_once) {
            const AmxProduct product = {a + 4 * i,
                                        a_stride,
                                        rows - kAmxRows,
                                        b + 4 * (i * width + j),
                                        4 * width,
                                        steps,
                                        is_last ? last.bytes : nullptr,
                                        b + 4 * ((depth - kAmxWords) * width + j),
                                        i != 0,
                                        c + j,
                                        c_stride,
                                        next.over(steps, lines)};
            const int64_t column_tiles = smaller(columns_at_once, width - j) / kAmxWords;
            if (has_two) {
                with_constant<2>(column_tiles,
                                 [&](auto some) { amx_multiply<packed_unsigned, 2, decltype(some)::value>(product); });
            } else {
                with_constant<4>(column_tiles,
                                 [&](auto some) { amx_multiply<packed_unsigned, 1, decltype(some)::value>(product); });
            }
        }
    }
}

template <bool packed_unsigned>
void amx_multiply_panel(const uint8_t* a, int64_t a_stride, int64_t rows, const uint8_t* b, int64_t depth,
                        int64_t width, int32_t* c, int64_t c_stride, Prefetch next) {
    if (rows < kAmxRows || depth < kAmxWords) {
        multiply_by_fours<packed_unsigned>(a, a_stride, rows, b, depth, width, c, c_stride, next);
        return;
    }
    const int64_t blocks =
        rows == kAmxRows ? 1
                         : (rows + 2 * kAmxRows - 1) / (2 * kAmxRows) * ((width + 2 * kAmxWords - 1) / (2 * kAmxWords));
    const int64_t steps = blocks * (depth / kAmxWords), lines = (next.lines + steps - 1) / steps;
    for (int64_t r = 0; r < rows; r += 2 * kAmxRows) {
        const int64_t first = smaller(r, rows - kAmxRows), some = smaller(2 * kAmxRows, rows - first);
        amx_multiply_rows<packed_unsigned>(a + first * a_stride, a_stride, some, b, depth, width, c + first * c_stride,
                                           c_stride, next, lines);
    }
    next.fetch();
}

template <>
void multiply_panel<false>(const uint8_t* a, int64_t a_stride, int64_t rows, const uint8_t* b, int64_t depth,
                           int64_t width, int32_t* c, int64_t c_stride, Prefetch next) {
    amx_multiply_panel<false>(a, a_stride, rows, b, depth, width, c, c_stride, next);
}

template <>
void multiply_panel<true>(const uint8_t* a, int64_t a_stride, int64_t rows, const uint8_t* b, int64_t depth,
                          int64_t width, int32_t* c, int64_t c_stride, Prefetch next) {
    amx_multiply_panel<true>(a, a_stride, rows, b, depth, width, c, c_stride, next);
}
