// Rows of bytes times a packed matrix of bytes, and rows of floats times one of bfloat16 (isa/kernels.h), for QKᵀ, PV
// and the linears, for one instruction set.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/numbers-inl.h"

// To the L2 cache: on an AMD EPYC (Zen 4), prefetches to the L1 cache hold up the loads behind them.
FAQUANT_INLINE void prefetch(const char* line) {
    __builtin_prefetch(line, 0, 2);
}

// A part of a Prefetch, with `lines` lines per step of a loop.
struct PrefetchSteps {
    const char* next;
    int64_t lines;

    void fetch() {
        for (int64_t i = 0; i < lines; ++i) {
            prefetch(next);
            next += kCacheLine;
        }
    }
};

// The memory that will be read next, to be prefetched during computations.
struct Prefetch {
    const char* next;
    int64_t lines;

    // All of it.
    void fetch() {
        PrefetchSteps{next, lines}.fetch();
        lines = 0;
    }

    // As much of it as `steps` steps can fetch evenly, with at most `most` lines each.
    PrefetchSteps over(int64_t steps, int64_t most = INT64_MAX) {
        const int64_t each = smaller(most, lines / steps);
        return {take(each * steps).next, each};
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

// Defined per instruction set: c[r][j] = ∑ a[r][n · i + m] · b[i][j][m], where n is kInWord, for rows of a that are
// a_stride elements apart, and a panel b [depth, width, n]; rows and depth are at least 1. The bits of a row depend
// only on the row. Sums of bytes are exact; one side is signed and the other unsigned, the packed one if
// packed_unsigned. Products of floats and bfloat16 are added one after another; they are exact, so it does not matter
// whether each is fused with its addition. Prefetches all of `next` meanwhile.
template <bool packed_unsigned, typename A, typename C>
void multiply_panel(const A* a, int64_t a_stride, int64_t rows, const uint8_t* b, int64_t depth, int64_t width, C* c,
                    int64_t c_stride, Prefetch next);

// Lives as long as a kernel calls multiply_panel with rows of this type, up to `rows` of them per call. Units whose
// instructions need a state of the CPU specialize it to set and reset that.
template <typename A>
struct Multiplying {
    explicit Multiplying(int64_t) {}
};

// A packed matrix with this many words per column.
struct Packed {
    const uint8_t* words;
    int64_t depth;
};

// c = a · b for any number of rows of a, and the first `columns` columns and `depth` words of each column of b.
template <bool packed_unsigned = false, typename A, typename C>
void multiply(const A* a, int64_t a_stride, int64_t rows, const Packed& b, int64_t depth, int64_t columns, C* c,
              int64_t c_stride, Prefetch next) {
    int64_t left = (columns + kPanel - 1) / kPanel;
    for (int64_t j = 0; j < columns; j += kPanel, --left) {
        multiply_panel<packed_unsigned>(a, a_stride, rows, b.words + j * 4 * b.depth, depth,
                                        smaller(kPanel, columns - j), c + j, c_stride, next.take(next.lines / left));
    }
}
