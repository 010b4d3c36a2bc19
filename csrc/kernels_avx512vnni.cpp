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

void halves_to_floats(const uint16_t* halves, float* floats) {
    for (int64_t i = 0; i < kTile; i += 16) {
        const __m256i some = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves + i));
        _mm512_storeu_ps(floats + i, _mm512_cvtph_ps(some));
    }
}

constexpr int64_t kColumns = 16;
constexpr int kMostBlocks = 4;

#include "multiply_rows.h"

// Sums of products, and the columns that they are made of. They nest, because GCC 12 keeps arrays of vectors in memory.
#define FAQUANT_INLINE __attribute__((always_inline)) inline

template <int blocks>
struct Columns : Columns<blocks - 1> {
    __m512i bytes;

    FAQUANT_INLINE explicit Columns(const uint8_t* b)
        : Columns<blocks - 1>(b), bytes(_mm512_loadu_si512(b + (blocks - 1) * 64)) {
        // Else they are loaded anew for every row.
        __asm__("" : "+v"(bytes));
    }
};

template <>
struct Columns<0> {
    FAQUANT_INLINE explicit Columns(const uint8_t*) {}
};

template <bool packed_unsigned, int blocks>
struct RowSums : RowSums<packed_unsigned, blocks - 1> {
    using Others = RowSums<packed_unsigned, blocks - 1>;
    __m512i sums = _mm512_setzero_si512();

    FAQUANT_INLINE void add(__m512i row, const Columns<blocks>& columns) {
        Others::add(row, columns);
        sums = packed_unsigned ? add_products(sums, columns.bytes, row) : add_products(sums, row, columns.bytes);
    }

    FAQUANT_INLINE void store(int32_t* c) const {
        Others::store(c);
        _mm512_storeu_si512(c + (blocks - 1) * kColumns, sums);
    }
};

template <bool packed_unsigned>
struct RowSums<packed_unsigned, 0> {
    FAQUANT_INLINE void add(__m512i, const Columns<0>&) {}
    FAQUANT_INLINE void store(int32_t*) const {}
};

template <bool packed_unsigned, int rows, int blocks>
struct BlockSums : BlockSums<packed_unsigned, rows - 1, blocks> {
    using Others = BlockSums<packed_unsigned, rows - 1, blocks>;
    RowSums<packed_unsigned, blocks> row;

    FAQUANT_INLINE void add(const uint8_t* a, int64_t a_stride, const Columns<blocks>& columns) {
        Others::add(a, a_stride, columns);
        row.add(_mm512_set1_epi32(four_bytes(a + (rows - 1) * a_stride)), columns);
    }

    FAQUANT_INLINE void store(int32_t* c, int64_t c_stride) const {
        Others::store(c, c_stride);
        row.store(c + (rows - 1) * c_stride);
    }
};

template <bool packed_unsigned, int blocks>
struct BlockSums<packed_unsigned, 0, blocks> {
    FAQUANT_INLINE void add(const uint8_t*, int64_t, const Columns<blocks>&) {}
    FAQUANT_INLINE void store(int32_t*, int64_t) const {}
};

// Not inlined, because GCC then runs out of registers in its loop.
template <bool packed_unsigned, int rows, int blocks>
__attribute__((noinline)) void multiply_block(const uint8_t* a, int64_t a_stride, const uint8_t* b, int64_t b_stride,
                                              int64_t depth, int32_t* c, int64_t c_stride, Share ahead) {
    BlockSums<packed_unsigned, rows, blocks> sums;
    for (const uint8_t* end = a + 4 * depth; a != end; a += 4, b += b_stride) {
        ahead.fetch();
        sums.add(a, a_stride, Columns<blocks>(b));
    }
    sums.store(c, c_stride);
}

#include "attend_rows.h"
#include "elementwise_rows.h"
#include "linear_rows.h"

}  // namespace

const KernelTable kAvx512VnniKernels = {"avx512vnni",  dot_u8s8,     dot_s8s8, append, attend,     quantize_inputs,
                                        linear_panels, gated_panels, rms_norm, rope,   silu_times, finish};

}  // namespace faquant
