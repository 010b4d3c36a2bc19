#define FAQUANT_UNIT
#include "isa/kernels.h"

namespace faquant {
namespace {

int32_t dot_u8s8(const uint8_t* a, const int8_t* b, int64_t n) {
    int32_t sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        sum += static_cast<int32_t>(a[i]) * static_cast<int32_t>(b[i]);
    }
    return sum;
}

int32_t dot_s8s8(const int8_t* a, const int8_t* b, int64_t n) {
    int32_t sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        sum += static_cast<int32_t>(a[i]) * static_cast<int32_t>(b[i]);
    }
    return sum;
}

constexpr int64_t kColumns = kPadding;
constexpr int kMostBlocks = 1, kMostFloatBlocks = 1;

#include "generic/multiply_fours-inl.h"

template <bool packed_unsigned, int rows, int blocks>
void multiply_block(const uint8_t* a, int64_t a_stride, const uint8_t* b, int64_t b_stride, int64_t depth, int32_t* c,
                    int64_t c_stride, PrefetchSteps) {
    static_assert(blocks == 1);
    const auto* signed_a = reinterpret_cast<const int8_t*>(a);
    const auto* signed_b = reinterpret_cast<const int8_t*>(b);
    for (int r = 0; r < rows; ++r) {
        int32_t sums[4 * kColumns] = {};
        for (int64_t i = 0; i < depth; ++i) {
            for (int64_t j = 0; j < 4 * kColumns; ++j) {
                const int64_t at = r * a_stride + 4 * i + j % 4;
                sums[j] += packed_unsigned ? signed_a[at] * b[i * b_stride + j] : a[at] * signed_b[i * b_stride + j];
            }
        }
        for (int64_t j = 0; j < kColumns; ++j) {
            c[r * c_stride + j] = sums[4 * j] + sums[4 * j + 1] + sums[4 * j + 2] + sums[4 * j + 3];
        }
    }
}

template <bool packed_unsigned, int rows, int blocks>
void multiply_block(const float* a, int64_t a_stride, const uint8_t* b, int64_t b_stride, int64_t depth, float* c,
                    int64_t c_stride, PrefetchSteps) {
    static_assert(blocks == 1);
    for (int r = 0; r < rows; ++r) {
        float sums[kColumns] = {};
        for (int64_t i = 0; i < depth; ++i) {
            uint16_t halves[2 * kColumns];
            __builtin_memcpy(halves, b + i * b_stride, sizeof halves);
            const float first = a[r * a_stride + 2 * i], second = a[r * a_stride + 2 * i + 1];
            for (int64_t j = 0; j < kColumns; ++j) {
                sums[j] += first * float_of(uint32_t{halves[2 * j]} << 16);
            }
            for (int64_t j = 0; j < kColumns; ++j) {
                sums[j] += second * float_of(uint32_t{halves[2 * j + 1]} << 16);
            }
        }
        for (int64_t j = 0; j < kColumns; ++j) {
            c[r * c_stride + j] = sums[j];
        }
    }
}

void halves_to_floats(const uint16_t* halves, float* floats) {
    for (int64_t i = 0; i < kTile; ++i) {
        floats[i] = half_to_float(halves[i]);
    }
}

#include "generic/table-inl.h"

}  // namespace

constexpr KernelTable kPortableKernels = table_of("portable", 0);

}  // namespace faquant
