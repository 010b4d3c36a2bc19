#include <immintrin.h>

#include "kernels.h"

namespace faquant {
namespace {

__mmask64 first_lanes(int64_t count) {
    return count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1;
}

int32_t dot_u8s8(const uint8_t* a, const int8_t* b, int64_t n) {
    __m512i acc = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += 64) {
        const __mmask64 mask = first_lanes(n - i);
        const __m512i x = _mm512_maskz_loadu_epi8(mask, a + i);
        const __m512i y = _mm512_maskz_loadu_epi8(mask, b + i);
        acc = _mm512_dpbusd_epi32(acc, x, y);
    }
    return _mm512_reduce_add_epi32(acc);
}

// vpdpbusd wants its first factor unsigned: a·b = (a + 128)·b − 128·b. Lanes beyond n have b = 0.
int32_t dot_s8s8(const int8_t* a, const int8_t* b, int64_t n) {
    const __m512i offset = _mm512_set1_epi8(static_cast<char>(0x80));
    __m512i acc = _mm512_setzero_si512();
    __m512i excess = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += 64) {
        const __mmask64 mask = first_lanes(n - i);
        const __m512i x = _mm512_maskz_loadu_epi8(mask, a + i);
        const __m512i y = _mm512_maskz_loadu_epi8(mask, b + i);
        acc = _mm512_dpbusd_epi32(acc, _mm512_xor_si512(x, offset), y);
        excess = _mm512_dpbusd_epi32(excess, offset, y);
    }
    return _mm512_reduce_add_epi32(_mm512_sub_epi32(acc, excess));
}

int32_t pair(const int16_t* x) {
    int32_t both;
    __builtin_memcpy(&both, x, sizeof both);
    return both;
}

constexpr int64_t kLanes = 16;
constexpr int kMostPanels = 4;

template <int panels>
void multiply_panels(const int16_t* a, int64_t a_stride, const int16_t* b, int64_t depth, int32_t* c,
                     int64_t c_stride) {
    __m512i sums[4][panels];
    for (int r = 0; r < 4; ++r) {
        for (int p = 0; p < panels; ++p) {
            sums[r][p] = _mm512_setzero_si512();
        }
    }
    for (int64_t i = 0; i < depth; i += 2) {
        __m512i columns[panels];
        for (int p = 0; p < panels; ++p) {
            columns[p] = _mm512_loadu_si512(b + (p * depth + i) * kLanes);
        }
        for (int r = 0; r < 4; ++r) {
            const __m512i row = _mm512_set1_epi32(pair(a + r * a_stride + i));
            for (int p = 0; p < panels; ++p) {
                sums[r][p] = _mm512_dpwssd_epi32(sums[r][p], row, columns[p]);
            }
        }
    }
    for (int r = 0; r < 4; ++r) {
        for (int p = 0; p < panels; ++p) {
            _mm512_storeu_si512(c + r * c_stride + p * kLanes, sums[r][p]);
        }
    }
}

#include "attend_rows.h"

}  // namespace

const KernelTable kAvx512VnniKernels = {"avx512vnni", dot_u8s8, dot_s8s8, attend_rows};

}  // namespace faquant
