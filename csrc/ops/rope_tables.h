#pragma once

#include <cstdint>

namespace faquant {

// Of each position t and frequency i the cosine and sine of float32(positions[t]) · frequencies[i], which is rounded to
// float32 too, times `scaling`, at i and at i + count of cos and sin [tokens, 2 · count]. Code of our own: a library's
// last bit differs from the next one's. Before the scaling, cosine and sine of up to 2^28 are those rounded once but in
// one of 10^8 cases.
void rope_tables(const float* frequencies, int64_t count, const int64_t* positions, int64_t tokens, float scaling,
                 float* cos, float* sin);

}  // namespace faquant
