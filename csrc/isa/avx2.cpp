#define FAQUANT_UNIT
#include <immintrin.h>

#include "isa/kernels.h"

namespace faquant {
namespace {

#include "generic/numbers-inl.h"

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
    return sum_lanes(acc) + plain_dot(a + i, b + i, n - i);
}

int32_t dot_s8s8(const int8_t* a, const int8_t* b, int64_t n) {
    __m256i acc = _mm256_setzero_si256();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a + i)));
        const __m256i y = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i)));
        acc = _mm256_add_epi32(acc, _mm256_madd_epi16(x, y));
    }
    return sum_lanes(acc) + plain_dot(a + i, b + i, n - i);
}

#define FAQUANT_REGISTER(x) "+x"(x)

constexpr int64_t kColumns = 8;
constexpr int kMostBlocks = 1, kMostFloatBlocks = 2;

#include "generic/multiply_fours-inl.h"
#include "isa/floats_256-inl.h"

template <bool is_unsigned>
__m256i widened(__m128i bytes) {
    return is_unsigned ? _mm256_cvtepu8_epi16(bytes) : _mm256_cvtepi8_epi16(bytes);
}

template <bool packed_unsigned, int rows, int blocks>
void multiply_block(const uint8_t* a, int64_t a_stride, const uint8_t* b, int64_t b_stride, int64_t depth, bool add,
                    int32_t* c, int64_t c_stride, PrefetchSteps next) {
    static_assert(blocks == 1);
    // Four columns each, with two sums per column.
    __m256i low[rows], high[rows];
    for (int r = 0; r < rows; ++r) {
        low[r] = high[r] = _mm256_setzero_si256();
    }
    for (int64_t i = 0; i < depth; ++i) {
        next.fetch();
        const auto* columns = reinterpret_cast<const __m128i*>(b + i * b_stride);
        const __m256i first = widened<packed_unsigned>(_mm_loadu_si128(columns));
        const __m256i second = widened<packed_unsigned>(_mm_loadu_si128(columns + 1));
        for (int r = 0; r < rows; ++r) {
            int32_t bytes;
            __builtin_memcpy(&bytes, a + r * a_stride + 4 * i, sizeof bytes);
            const __m256i row = widened<!packed_unsigned>(_mm_set1_epi32(bytes));
            low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(first, row));
            high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(second, row));
        }
    }
    for (int r = 0; r < rows; ++r) {
        __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(low[r], high[r]), 0xd8);
        auto* out = reinterpret_cast<__m256i*>(c + r * c_stride);
        if (add) {
            sums = _mm256_add_epi32(sums, _mm256_loadu_si256(out));
        }
        _mm256_storeu_si256(out, sums);
    }
}

#include "generic/multiply_floats-inl.h"
#include "generic/table-inl.h"

}  // namespace

constexpr KernelTable kAvx2Kernels = table_of("avx2", kAvx2 | kFma | kF16c);

}  // namespace faquant
