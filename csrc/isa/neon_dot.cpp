// NEON with sdot, whose factors are both signed.
#define FAQUANT_UNIT
#include <arm_neon.h>

#include "isa/kernels.h"

namespace faquant {
namespace {

#include "generic/numbers-inl.h"

// sdot takes no unsigned x, but 127 - x and -127, whose sum is -x. (Not x - 128 and 128, which is no int8.)
int8x16_t opposite(uint8x16_t x) {
    return vreinterpretq_s8_u8(veorq_u8(x, vdupq_n_u8(0x7f)));
}

constexpr int8_t kRest = -127;

int32_t dot_u8s8(const uint8_t* a, const int8_t* b, int64_t n) {
    const int8x16_t rest = vdupq_n_s8(kRest);
    int32x4_t sums = vdupq_n_s32(0);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const int8x16_t y = vld1q_s8(b + i);
        sums = vdotq_s32(vdotq_s32(sums, opposite(vld1q_u8(a + i)), y), rest, y);
    }
    return -vaddvq_s32(sums) + plain_dot(a + i, b + i, n - i);
}

#include "isa/floats_neon-inl.h"

constexpr int64_t kColumns = kFloatLanes;
constexpr int kMostBlocks = 1, kMostFloatBlocks = 4;

#include "generic/multiply_floats-inl.h"
#include "isa/multiply_neon-inl.h"

template <bool packed_unsigned>
int32_t start_of(const uint8_t* a, int64_t depth) {
    if constexpr (!packed_unsigned) {
        return 0;
    }
    const auto* row = reinterpret_cast<const int8_t*>(a);
    const int8x16_t ones = vdupq_n_s8(1);
    int32x4_t sums = vdupq_n_s32(0);
    int64_t i = 0;
    for (; i + 16 <= 4 * depth; i += 16) {
        sums = vdotq_s32(sums, vld1q_s8(row + i), ones);
    }
    int32_t sum = vaddvq_s32(sums);
    for (; i < 4 * depth; ++i) {
        sum += row[i];
    }
    return 128 * sum;
}

// Assembly, because GCC 12 copies the sums of the intrinsics, and volatile, because compilers would otherwise read more
// operands in advance than there are registers.
template <int lane>
FAQUANT_INLINE void add_lane(int32x4_t& sums, int8x16_t columns, int8x16_t row) {
    __asm__ volatile("sdot %0.4s, %1.16b, %2.4b[%3]" : "+w"(sums) : "w"(columns), "w"(row), "i"(lane));
}

FAQUANT_INLINE void add_rest(int32x4_t& sums, int8x16_t columns) {
    __asm__ volatile("sdot %0.4s, %1.16b, %2.16b" : "+w"(sums) : "w"(columns), "w"(vdupq_n_s8(kRest)));
}

// Unsigned columns become signed by subtracting 128, for which start_of makes up. Unsigned rows share their products
// with kRest.
template <bool packed_unsigned, int rows, int vectors>
struct Sums {
    int32x4_t sums[rows][vectors];
    int32x4_t rest[vectors];

    FAQUANT_INLINE explicit Sums(const int32_t* starts) {
        FAQUANT_UNROLL
        for (int v = 0; v < vectors; ++v) {
            rest[v] = vdupq_n_s32(0);
            FAQUANT_UNROLL
            for (int r = 0; r < rows; ++r) {
                sums[r][v] = vdupq_n_s32(starts[r]);
            }
        }
    }

    template <int lane>
    FAQUANT_INLINE void add_word(const int8x16_t (&row)[rows], const uint8_t* b) {
        FAQUANT_UNROLL
        for (int v = 0; v < vectors; ++v) {
            const uint8x16_t bytes = vld1q_u8(b + 4 * kInVector * v);
            const int8x16_t columns = vreinterpretq_s8_u8(packed_unsigned ? veorq_u8(bytes, vdupq_n_u8(0x80)) : bytes);
            FAQUANT_UNROLL
            for (int r = 0; r < rows; ++r) {
                add_lane<lane>(sums[r][v], columns, row[r]);
            }
            if constexpr (!packed_unsigned) {
                add_rest(rows == 1 ? sums[0][v] : rest[v], columns);
            }
        }
    }

    FAQUANT_INLINE void add(const uint8_t* a, int64_t a_stride, const FourWords& words) {
        int8x16_t row[rows];
        FAQUANT_UNROLL
        for (int r = 0; r < rows; ++r) {
            const uint8x16_t bytes = vld1q_u8(a + r * a_stride);
            row[r] = packed_unsigned ? vreinterpretq_s8_u8(bytes) : opposite(bytes);
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
                vst1q_s32(c + r * c_stride + kInVector * v,
                          packed_unsigned ? sums[r][v] : vnegq_s32(vaddq_s32(sums[r][v], rest[v])));
            }
        }
    }
};

#include "generic/table-inl.h"

}  // namespace

constexpr KernelTable kNeonDotKernels = table_of("neondot", kAsimdDp);

}  // namespace faquant
