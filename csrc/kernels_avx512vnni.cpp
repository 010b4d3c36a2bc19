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

int32_t four_bytes(const uint8_t* x) {
    int32_t bytes;
    __builtin_memcpy(&bytes, x, sizeof bytes);
    return bytes;
}

// sum += a · b, four bytes in each lane. GCC 12 copies the sums of _mm512_dpbusd_epi32 around in a loop, which takes as
// long as the products.
__attribute__((always_inline)) inline __m512i add_products(__m512i sum, __m512i unsigned_a, __m512i signed_b) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_a), "v"(signed_b));
    return sum;
}

#include "quantize_rows.h"

constexpr int64_t kColumns = 16;
constexpr int kMostBlocks = 4;

#include "multiply_rows.h"

template <bool packed_unsigned, int rows, int blocks>
void multiply_block(const uint8_t* a, int64_t a_stride, const uint8_t* b, int64_t b_stride, int64_t depth, int32_t* c,
                    int64_t c_stride, Ahead ahead) {
    __m512i sums[rows][blocks];
    for (int r = 0; r < rows; ++r) {
        for (int p = 0; p < blocks; ++p) {
            sums[r][p] = _mm512_setzero_si512();
        }
    }
    for (int64_t i = 0; i < depth; ++i) {
        ahead.fetch();
        __m512i columns[blocks];
        for (int p = 0; p < blocks; ++p) {
            columns[p] = _mm512_loadu_si512(b + i * b_stride + p * 64);
        }
        for (int r = 0; r < rows; ++r) {
            const __m512i row = _mm512_set1_epi32(four_bytes(a + r * a_stride + 4 * i));
            for (int p = 0; p < blocks; ++p) {
                sums[r][p] = packed_unsigned ? add_products(sums[r][p], columns[p], row)
                                             : add_products(sums[r][p], row, columns[p]);
            }
        }
    }
    for (int r = 0; r < rows; ++r) {
        for (int p = 0; p < blocks; ++p) {
            _mm512_storeu_si512(c + r * c_stride + p * kColumns, sums[r][p]);
        }
    }
}

#include "attend_rows.h"
#include "elementwise_rows.h"
#include "linear_rows.h"

}  // namespace

const KernelTable kAvx512VnniKernels = {"avx512vnni",  dot_u8s8,     dot_s8s8, append, attend,     quantize_inputs,
                                        linear_panels, gated_panels, rms_norm, rope,   silu_times, finish};

}  // namespace faquant
