// What multiply_floats.h needs, of 256-bit vectors.

using Floats = __m256;

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
