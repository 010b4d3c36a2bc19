// Rows of bytes times a packed matrix of bytes, and rows of floats times one of bfloat16 (isa/kernels.h), for QKᵀ, PV
// and the linears, for one instruction set.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/numbers-inl.h"

constexpr int64_t kCacheLine = 64;

#define FAQUANT_INLINE __attribute__((always_inline)) inline

// The memory that will be read next, to be prefetched during computations.
struct Prefetch {
    const char* next;
    int64_t lines;

    // Prefetch some more lines, if there are any.
    void fetch(int64_t some) {
        for (int64_t i = 0; i < smaller(some, lines); ++i) {
            __builtin_prefetch(next + i * kCacheLine);
        }
        next += some * kCacheLine;
        lines -= some;
    }

    // The next lines, to be fetched elsewhere.
    Prefetch take(int64_t some) {
        const Prefetch part = {next, some};
        next += some * kCacheLine;
        lines -= some;
        return part;
    }
};

// Rows of b per word, for rows of a of this type.
template <typename A>
constexpr int64_t kInWord = sizeof(A) == 1 ? 4 : 2;

// Defined per instruction set: c[r][j] = ∑ a[r][n · i + m] · b[i][j][m], where n is kInWord, for up to kStrip rows a
// [rows, n · depth] and a panel b [depth, width, n]. The bits of a row depend only on the row.
// Sums of bytes are exact; one side is signed and the other unsigned, the packed one if packed_unsigned. Products of
// floats and bfloat16 are added one after another; they are exact, so it does not matter whether each is fused with its
// addition. Prefetches all of `next` meanwhile.
template <bool packed_unsigned, typename A, typename C>
void multiply_panel(const A* a, int64_t rows, const uint8_t* b, int64_t depth, int64_t width, C* c, int64_t c_stride,
                    Prefetch next);

// c = a · b for any number of rows a [rows, n · depth] and the packed b [n · depth, columns].
template <bool packed_unsigned = false, typename A, typename C>
void multiply(const A* a, int64_t rows, const uint8_t* b, int64_t depth, int64_t columns, C* c, Prefetch next) {
    int64_t left = (columns + kPanel - 1) / kPanel * ((rows + kStrip - 1) / kStrip);
    for (int64_t j = 0; j < columns; j += kPanel) {
        for (int64_t r = 0; r < rows; r += kStrip, --left) {
            multiply_panel<packed_unsigned>(a + r * kInWord<A> * depth, smaller(kStrip, rows - r), b + j * 4 * depth,
                                            depth, smaller(kPanel, columns - j), c + r * columns + j, columns,
                                            next.take(next.lines / left));
        }
    }
}
