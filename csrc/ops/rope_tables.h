#pragma once

#include <cstdint>

namespace faquant {

// For each position t and frequency i, the cosine and sine of float32(positions[t] · frequencies[i]), times `scaling`,
// at i and i + count of cos and sin [tokens, 2 · count]. Own code, because libraries differ in the last bit. Before
// scaling, cosine and sine of angles up to 2^28 are correctly rounded, except in one of 10^8 cases.
void rope_tables(const float* frequencies, int64_t count, const int64_t* positions, int64_t tokens, float scaling,
                 float* cos, float* sin);

}  // namespace faquant
