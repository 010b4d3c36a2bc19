// Rows of bytes times a packed matrix of bytes, and rows of floats times one of bfloat16 (kernels.h), for QKᵀ, PV and
// the linears. Each unit includes this text in its anonymous namespace. It defines before it:
//
//   kColumns          packed columns that multiply_block takes at a time, a divisor of kPadding
//   kMostBlocks       how many blocks of them it is best given at once
//   kMostFloatBlocks  the same for floats
//
// and behind it both kinds of multiply_block.

constexpr int64_t kCacheLine = 64;

#define FAQUANT_INLINE __attribute__((always_inline)) inline

// What will be read next, to be fetched from memory while there is something to compute.
struct Ahead {
    const char* next;
    int64_t lines;

    // Fetch some more lines, as far as there are any.
    void fetch(int64_t some) {
        for (int64_t i = 0; i < smaller(some, lines); ++i) {
            __builtin_prefetch(next + i * kCacheLine);
        }
        next += some * kCacheLine;
        lines -= some;
    }
};

// A part of it for one step of a loop, whose every turn fetches so many lines.
struct Share {
    const char* next;
    int64_t lines;

    void fetch() {
        for (int64_t i = 0; i < lines; ++i) {
            __builtin_prefetch(next);
            next += kCacheLine;
        }
    }
};

// c[r][j] = ∑ a[r][4i + n] · b[i][j][n], exactly, for `rows` (1 to 4) rows of bytes a and blocks · kColumns columns of
// b [depth, b_stride / 4, 4]. One side is signed, the other not. Calls ahead.fetch() for each i.
template <bool packed_unsigned, int rows, int blocks>
void multiply_block(const uint8_t* a, int64_t a_stride, const uint8_t* b, int64_t b_stride, int64_t depth, int32_t* c,
                    int64_t c_stride, Share ahead);

// The same of floats and bfloat16, b [depth, b_stride / 4, 2]: c[r][j] = ∑ a[r][2i + n] · b[i][j][n], added one after
// the other. Where the products are exact, it does not matter whether each is fused with its addition.
template <bool packed_unsigned, int rows, int blocks>
void multiply_block(const float* a, int64_t a_stride, const uint8_t* b, int64_t b_stride, int64_t depth, float* c,
                    int64_t c_stride, Share ahead);

// Rows of b that stand in a word, for rows of a of this type.
template <typename A>
constexpr int64_t kInWord = sizeof(A) == 1 ? 4 : 2;

template <bool packed_unsigned, int rows, typename A, typename C>
void multiply_panel(const A* a, const uint8_t* b, int64_t depth, int64_t width, C* c, int64_t c_stride, Share ahead) {
    constexpr int blocks = sizeof(A) == 1 ? kMostBlocks : kMostFloatBlocks;
    const int64_t a_stride = kInWord<A> * depth;
    int64_t j = 0;
    for (; j + blocks * kColumns <= width; j += blocks * kColumns) {
        multiply_block<packed_unsigned, rows, blocks>(a, a_stride, b + 4 * j, 4 * width, depth, c + j, c_stride, ahead);
        ahead.lines = 0;  // once is enough
    }
    for (; j < width; j += kColumns) {
        multiply_block<packed_unsigned, rows, 1>(a, a_stride, b + 4 * j, 4 * width, depth, c + j, c_stride, ahead);
        ahead.lines = 0;
    }
}

// c = a · b for any number of rows a [rows, 4 or 2 · depth] and the packed b [4 or 2 · depth, columns]. What is ahead
// is fetched meanwhile. The packed side's sign is one of bytes.
template <bool packed_unsigned = false, typename A, typename C>
void multiply(const A* a, int64_t rows, const uint8_t* b, int64_t depth, int64_t columns, C* c, Ahead ahead) {
    const int64_t steps = (columns + kPanel - 1) / kPanel * ((rows + 3) / 4) * depth;
    const int64_t lines = (ahead.lines + steps - 1) / steps;
    for (int64_t j = 0; j < columns; j += kPanel) {
        const int64_t width = smaller(kPanel, columns - j);
        const uint8_t* panel = b + j * 4 * depth;
        for (int64_t r = 0; r < rows; r += 4) {
            const Share share = {ahead.next, smaller(lines, ahead.lines / depth)};
            ahead.next += share.lines * depth * kCacheLine;
            ahead.lines -= share.lines * depth;
            const A* some = a + r * kInWord<A> * depth;
            C* out = c + r * columns + j;
            switch (smaller(rows - r, 4)) {
                case 4:
                    multiply_panel<packed_unsigned, 4>(some, panel, depth, width, out, columns, share);
                    break;
                case 3:
                    multiply_panel<packed_unsigned, 3>(some, panel, depth, width, out, columns, share);
                    break;
                case 2:
                    multiply_panel<packed_unsigned, 2>(some, panel, depth, width, out, columns, share);
                    break;
                default:
                    multiply_panel<packed_unsigned, 1>(some, panel, depth, width, out, columns, share);
            }
        }
    }
    ahead.fetch(ahead.lines);
}
