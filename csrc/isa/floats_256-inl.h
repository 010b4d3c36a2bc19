// The primitives for vectors of floats that generic/editor.h lists, with 256-bit vectors.

#pragma once

#ifndef FAQUANT_UNIT
#include <immintrin.h>

#include "isa/kernels.h"

using namespace faquant;
#endif

using Floats = __m256;

constexpr int64_t kFloatLanes = 8;

constexpr int float_blocks(int rows) {
    return rows <= 2 ? 8 / rows : 2;
}

Floats load_floats(const float* from) {
    return _mm256_loadu_ps(from);
}

Floats first_rows(const uint8_t* b) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}

Floats second_rows(const uint8_t* b) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
    return _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(-0x10000)));
}

Floats all_lanes(float x) {
    return _mm256_set1_ps(x);
}

Floats add_product(Floats sum, Floats a, Floats b) {
    return _mm256_fmadd_ps(a, b, sum);
}

void store(float* to, Floats x) {
    _mm256_storeu_ps(to, x);
}

void halves_to_floats(const uint16_t* halves, float* floats) {
    for (int64_t i = 0; i < kTile; i += 8) {
        const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + i));
        _mm256_storeu_ps(floats + i, _mm256_cvtph_ps(some));
    }
}
