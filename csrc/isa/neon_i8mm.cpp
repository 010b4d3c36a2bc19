// NEON with usdot and usmmla, which multiply unsigned by signed bytes.
#define FAQUANT_UNIT
#include <arm_neon.h>

#include "isa/kernels.h"

namespace faquant {
namespace {

#include "generic/numbers-inl.h"

int32_t dot_u8s8(const uint8_t* a, const int8_t* b, int64_t n) {
    int32x4_t sums = vdupq_n_s32(0);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        sums = vusdotq_s32(sums, vld1q_u8(a + i), vld1q_s8(b + i));
    }
    return vaddvq_s32(sums) + plain_dot(a + i, b + i, n - i);
}

#include "isa/floats_neon-inl.h"

constexpr int64_t kColumns = kFloatLanes;
constexpr int kMostBlocks = 1, kMostFloatBlocks = 4;

#include "generic/multiply_floats-inl.h"
#include "isa/multiply_neon-inl.h"

template <bool packed_unsigned>
int32_t start_of(const uint8_t*, int64_t) {
    return 0;
}

// With usdot, which adds four products to the sum of a column, by lanes of a row.
template <bool packed_unsigned, int rows, int vectors>
struct LaneSums {
    int32x4_t sums[rows][vectors];

    FAQUANT_INLINE explicit LaneSums(const int32_t*) {
        FAQUANT_UNROLL
        for (int r = 0; r < rows; ++r) {
            FAQUANT_UNROLL
            for (int v = 0; v < vectors; ++v) {
                sums[r][v] = vdupq_n_s32(0);
            }
        }
    }

    template <int lane>
    FAQUANT_INLINE void add_word(const uint8x16_t (&row)[rows], const uint8_t* b) {
        FAQUANT_UNROLL
        for (int v = 0; v < vectors; ++v) {
            const uint8x16_t column = vld1q_u8(b + 4 * kInVector * v);
            FAQUANT_UNROLL
            for (int r = 0; r < rows; ++r) {
                sums[r][v] = packed_unsigned ? vusdotq_laneq_s32(sums[r][v], column, vreinterpretq_s8_u8(row[r]), lane)
                                             : vsudotq_laneq_s32(sums[r][v], vreinterpretq_s8_u8(column), row[r], lane);
            }
        }
    }

    FAQUANT_INLINE void add(const uint8_t* a, int64_t a_stride, const FourWords& words) {
        uint8x16_t row[rows];
        FAQUANT_UNROLL
        for (int r = 0; r < rows; ++r) {
            row[r] = vld1q_u8(a + r * a_stride);
        }
        add_word<0>(row, words.at[0]);
        add_word<1>(row, words.at[1]);
        add_word<2>(row, words.at[2]);
        add_word<3>(row, words.at[3]);
    }

    FAQUANT_INLINE void write(int32_t* c, int64_t c_stride) const {
        FAQUANT_UNROLL
        for (int r = 0; r < rows; ++r) {
            FAQUANT_UNROLL
            for (int v = 0; v < vectors; ++v) {
                vst1q_s32(c + r * c_stride + kInVector * v, sums[r][v]);
            }
        }
    }
};

// With usmmla, which adds the products of two rows with two columns, of eight bytes each.
template <bool packed_unsigned, int rows, int vectors>
struct PairSums {
    static constexpr int kPairs = (rows + 1) / 2;
    int32x4_t sums[kPairs][2 * vectors];

    FAQUANT_INLINE explicit PairSums(const int32_t*) {
        FAQUANT_UNROLL
        for (int p = 0; p < kPairs; ++p) {
            FAQUANT_UNROLL
            for (int v = 0; v < 2 * vectors; ++v) {
                sums[p][v] = vdupq_n_s32(0);
            }
        }
    }

    // Assembly, because GCC 12 copies the sums of the intrinsic, and volatile, because it would otherwise read more
    // operands in advance than there are registers.
    static FAQUANT_INLINE int32x4_t add_products(int32x4_t sum, uint64x2_t pair, uint32x4_t columns) {
        const uint8x16_t a = vreinterpretq_u8_u64(pair), b = vreinterpretq_u8_u32(columns);
        __asm__ volatile("usmmla %0.4s, %1.16b, %2.16b"
                         : "+w"(sum)
                         : "w"(packed_unsigned ? b : a), "w"(packed_unsigned ? a : b));
        return sum;
    }

    // Two words.
    FAQUANT_INLINE void add_words(const uint64x2_t (&pairs)[kPairs], const uint8_t* first, const uint8_t* second) {
        FAQUANT_UNROLL
        for (int v = 0; v < vectors; ++v) {
            const uint32x4_t low = vreinterpretq_u32_u8(vld1q_u8(first + 4 * kInVector * v));
            const uint32x4_t high = vreinterpretq_u32_u8(vld1q_u8(second + 4 * kInVector * v));
            const uint32x4_t left = vzip1q_u32(low, high), right = vzip2q_u32(low, high);
            FAQUANT_UNROLL
            for (int p = 0; p < kPairs; ++p) {
                sums[p][2 * v] = add_products(sums[p][2 * v], pairs[p], left);
                sums[p][2 * v + 1] = add_products(sums[p][2 * v + 1], pairs[p], right);
            }
        }
    }

    FAQUANT_INLINE void add(const uint8_t* a, int64_t a_stride, const FourWords& words) {
        uint64x2_t front[kPairs], back[kPairs];
        FAQUANT_UNROLL
        for (int p = 0; p < kPairs; ++p) {
            // The last of an odd number of rows pairs with itself.
            const uint8_t* other = a + (2 * p + 1 < rows ? 2 * p + 1 : 2 * p) * a_stride;
            const uint64x2_t first = vreinterpretq_u64_u8(vld1q_u8(a + 2 * p * a_stride));
            const uint64x2_t second = vreinterpretq_u64_u8(vld1q_u8(other));
            front[p] = vzip1q_u64(first, second);
            back[p] = vzip2q_u64(first, second);
        }
        add_words(front, words.at[0], words.at[1]);
        add_words(back, words.at[2], words.at[3]);
    }

    FAQUANT_INLINE void write(int32_t* c, int64_t c_stride) const {
        FAQUANT_UNROLL
        for (int p = 0; p < kPairs; ++p) {
            FAQUANT_UNROLL
            for (int v = 0; v < vectors; ++v) {
                const int32x4_t left = sums[p][2 * v], right = sums[p][2 * v + 1];
                const int64x2_t l = vreinterpretq_s64_s32(left), r = vreinterpretq_s64_s32(right);
                int32_t* to = c + 2 * p * c_stride + kInVector * v;
                // The columns of the first row, then those of the second.
                vst1q_s32(to, packed_unsigned ? vuzp1q_s32(left, right) : vreinterpretq_s32_s64(vzip1q_s64(l, r)));
                if (2 * p + 1 < rows) {
                    vst1q_s32(to + c_stride,
                              packed_unsigned ? vuzp2q_s32(left, right) : vreinterpretq_s32_s64(vzip2q_s64(l, r)));
                }
            }
        }
    }
};

template <bool packed_unsigned, int rows, int vectors>
struct Sums : PairSums<packed_unsigned, rows, vectors> {
    using PairSums<packed_unsigned, rows, vectors>::PairSums;
};

// For up to three rows, interleaving the columns takes more instructions than usmmla saves.
template <bool packed_unsigned, int vectors>
struct Sums<packed_unsigned, 1, vectors> : LaneSums<packed_unsigned, 1, vectors> {
    using LaneSums<packed_unsigned, 1, vectors>::LaneSums;
};

template <bool packed_unsigned, int vectors>
struct Sums<packed_unsigned, 2, vectors> : LaneSums<packed_unsigned, 2, vectors> {
    using LaneSums<packed_unsigned, 2, vectors>::LaneSums;
};

template <bool packed_unsigned, int vectors>
struct Sums<packed_unsigned, 3, vectors> : LaneSums<packed_unsigned, 3, vectors> {
    using LaneSums<packed_unsigned, 3, vectors>::LaneSums;
};

#include "generic/table-inl.h"

}  // namespace

constexpr KernelTable kNeonI8mmKernels = table_of("neoni8mm", kAsimdDp | kI8mm);

}  // namespace faquant
