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

}  // namespace

const KernelTable kAvx512VnniKernels = {"avx512vnni", dot_u8s8, dot_s8s8};

}  // namespace faquant
