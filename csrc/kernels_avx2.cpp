#include <immintrin.h>

#include "kernels.h"

namespace faquant {
namespace {

int32_t sum_lanes(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtsi128_si32(s);
}

// Widened to int16 first: vpmaddubsw would be shorter, but it saturates at 255·127·2.
int32_t dot_u8s8(const uint8_t* a, const int8_t* b, int64_t n) {
    __m256i acc = _mm256_setzero_si256();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a + i)));
        const __m256i y = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i)));
        acc = _mm256_add_epi32(acc, _mm256_madd_epi16(x, y));
    }
    int32_t sum = sum_lanes(acc);
    for (; i < n; ++i) {
        sum += static_cast<int32_t>(a[i]) * static_cast<int32_t>(b[i]);
    }
    return sum;
}

int32_t dot_s8s8(const int8_t* a, const int8_t* b, int64_t n) {
    __m256i acc = _mm256_setzero_si256();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a + i)));
        const __m256i y = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i)));
        acc = _mm256_add_epi32(acc, _mm256_madd_epi16(x, y));
    }
    int32_t sum = sum_lanes(acc);
    for (; i < n; ++i) {
        sum += static_cast<int32_t>(a[i]) * static_cast<int32_t>(b[i]);
    }
    return sum;
}

int32_t pair(const int16_t* x) {
    int32_t both;
    __builtin_memcpy(&both, x, sizeof both);
    return both;
}

constexpr int64_t kLanes = 8;
constexpr int kMostPanels = 2;

template <int panels>
void multiply_panels(const int16_t* a, int64_t a_stride, const int16_t* b, int64_t depth, int32_t* c,
                     int64_t c_stride) {
    __m256i sums[4][panels];
    for (int r = 0; r < 4; ++r) {
        for (int p = 0; p < panels; ++p) {
            sums[r][p] = _mm256_setzero_si256();
        }
    }
    for (int64_t i = 0; i < depth; i += 2) {
        __m256i columns[panels];
        for (int p = 0; p < panels; ++p) {
            columns[p] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + (p * depth + i) * kLanes));
        }
        for (int r = 0; r < 4; ++r) {
            const __m256i row = _mm256_set1_epi32(pair(a + r * a_stride + i));
            for (int p = 0; p < panels; ++p) {
                sums[r][p] = _mm256_add_epi32(sums[r][p], _mm256_madd_epi16(row, columns[p]));
            }
        }
    }
    for (int r = 0; r < 4; ++r) {
        for (int p = 0; p < panels; ++p) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + r * c_stride + p * kLanes), sums[r][p]);
        }
    }
}

#include "attend_rows.h"

}  // namespace

const KernelTable kAvx2Kernels = {"avx2", dot_u8s8, dot_s8s8, attend_rows};

}  // namespace faquant
