#include "ops/convert.h"

#include <algorithm>
#include <cstring>

#include "runtime/pool.h"

namespace faquant {
namespace {

constexpr int64_t kNumbersPerJob = 1 << 16;

uint32_t bits_of_bfloat16(uint16_t half) {
    return uint32_t{half} << 16;
}

uint32_t bits_of_float16(uint16_t half) {
    const uint32_t size = (half & 0x7fffu) << 13, sign = (half & 0x8000u) << 16;
    // Subnormal numbers are multiples of 2^-24. For others, the exponent's bias increases; twice for infinities and
    // NaN.
    const float small = static_cast<float>(half & 0x3ff) * 0x1p-24f;
    uint32_t bits;
    std::memcpy(&bits, &small, sizeof bits);
    constexpr uint32_t kLeastNormal = 1u << 23, kInfinite = 31u << 23, kBias = 112u << 23;
    // Masks, because GCC compiles conditions to branches here and does not vectorize.
    const uint32_t is_small = 0u - (size < kLeastNormal), is_infinite = 0u - (size >= kInfinite);
    return sign | (bits & is_small) | ((size + kBias + (kBias & is_infinite)) & ~is_small);
}

template <uint32_t (*bits_of)(uint16_t)>
void widen(const void* source, int64_t count, float* target, int64_t threads) {
    parallel((count + kNumbersPerJob - 1) / kNumbersPerJob, threads, [&](int64_t job) {
        const int64_t first = job * kNumbersPerJob, some = std::min(kNumbersPerJob, count - first);
        const char* from = static_cast<const char*>(source) + 2 * first;
        float* to = target + first;
        for (int64_t i = 0; i < some; ++i) {
            uint16_t half;
            std::memcpy(&half, from + 2 * i, sizeof half);
            const uint32_t bits = bits_of(half);
            std::memcpy(to + i, &bits, sizeof bits);
        }
    });
}

}  // namespace

void widen_bfloat16(const void* source, int64_t count, float* target, int64_t threads) {
    widen<bits_of_bfloat16>(source, count, target, threads);
}

void widen_float16(const void* source, int64_t count, float* target, int64_t threads) {
    widen<bits_of_float16>(source, count, target, threads);
}

}  // namespace faquant
