// The dot products and the primitives that generic/editor.h lists, with 512-bit vectors and vpdpbusd.

#pragma once

#ifndef FAQUANT_UNIT
#include <immintrin.h>

#include "isa/kernels.h"

using namespace faquant;
#endif

#include "generic/numbers-inl.h"

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

// The first factor of vpdpbusd is unsigned: a·b = (a + 128)·b − 128·b. Lanes beyond n have b = 0.
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

using Vector = __m512i;

Vector load(const uint8_t* from) {
    return _mm512_loadu_si512(from);
}

Vector load(const int32_t* from) {
    return _mm512_loadu_si512(from);
}

void store(int32_t* to, Vector x) {
    _mm512_storeu_si512(to, x);
}

Vector in_all_lanes(int32_t x) {
    return _mm512_set1_epi32(x);
}

// sum += a · b, four bytes in each lane. In a loop, GCC 12 copies the sums of _mm512_dpbusd_epi32, which takes as
// long as the products.
FAQUANT_INLINE Vector add_products(Vector sum, Vector unsigned_a, Vector signed_b) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_a), "v"(signed_b));
    return sum;
}

#define FAQUANT_REGISTER(x) "+v"(x)

using Floats = __m512;

constexpr int64_t kFloatLanes = 16;

constexpr int float_blocks(int) {
    return 4;
}

Floats load_floats(const float* from) {
    return _mm512_loadu_ps(from);
}

Floats first_rows(const uint8_t* b) {
    const __m512i words = _mm512_loadu_si512(b);
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

Floats second_rows(const uint8_t* b) {
    const __m512i words = _mm512_loadu_si512(b);
    return _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(-0x10000)));
}

Floats all_lanes(float x) {
    return _mm512_set1_ps(x);
}

Floats add_product(Floats sum, Floats a, Floats b) {
    return _mm512_fmadd_ps(a, b, sum);
}

void store(float* to, Floats x) {
    _mm512_storeu_ps(to, x);
}

void halves_to_floats(const uint16_t* halves, float* floats) {
    for (int64_t i = 0; i < kTile; i += 16) {
        const __m256i some = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves + i));
        _mm512_storeu_ps(floats + i, _mm512_cvtph_ps(some));
    }
}
