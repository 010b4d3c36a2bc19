// The operations between the products of a layer, for one instruction set. The bits of a row depend only on the row.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/hadamard-inl.h"
#include "generic/numbers-inl.h"
#include "generic/reductions-inl.h"

// out = x / rms(x) ⊙ weight (+ bias) for rows of `size`. Squares are summed in kLanes lanes, and those by halves.
void rms_norm(const Norm& norm, const float* x, int64_t rows, int64_t size, float* out) {
    for (int64_t r = 0; r < rows; ++r, x += size, out += size) {
        float sums[kLanes] = {};
        int64_t i = 0;
        for (; i + kLanes <= size; i += kLanes) {
            for (int64_t j = 0; j < kLanes; ++j) {
                sums[j] += x[i + j] * x[i + j];
            }
        }
        for (int64_t j = 0; i + j < size; ++j) {
            sums[j] += x[i + j] * x[i + j];
        }
        const float mean = sum_by_halves<kLanes>(sums) / static_cast<float>(size);
        const float scale = 1.0f / __builtin_sqrtf(mean + norm.eps);
        for (int64_t c = 0; c < size; ++c) {
            out[c] = norm.weight[c] * (x[c] * scale);
        }
        if (norm.bias != nullptr) {
            for (int64_t c = 0; c < size; ++c) {
                out[c] += norm.bias[c];
            }
        }
    }
}

// The pairs (i, i + dim / 2) of x [tokens, heads, dim] rotated in place by cos and sin [tokens, dim], as
// rope.apply_rope.
void rope(float* x, const float* cos, const float* sin, int64_t tokens, int64_t heads, int64_t dim) {
    const int64_t half = dim / 2;
    for (int64_t t = 0; t < tokens; ++t, cos += dim, sin += dim) {
        for (int64_t h = 0; h < heads; ++h, x += dim) {
            float* __restrict low = x;
            float* __restrict high = x + half;
            for (int64_t i = 0; i < half; ++i) {
                const float a = low[i], b = high[i];
                low[i] = a * cos[i] + -b * sin[i];
                high[i] = b * cos[half + i] + a * sin[half + i];
            }
        }
    }
}

// x / (1 + e^y). e^y = 2^n · e^r with n = rint(y / ln 2), and r in two parts of ln 2.
FAQUANT_INLINE float over_one_plus_exp(float x, float y) {
    const float bounded = greater(lesser(y, 88.0f), -87.0f);
    const float shifted = bounded * 1.44269504f + kRounder;
    const float n = shifted - kRounder;
    const float r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const float e = p * float_of((bits_of(shifted) - bits_of(kRounder) + 127) << 23);
    return x / (1.0f + (y > 88.0f ? kInfinity : e));
}

// silu(gate) · up, gate / (1 + e^-gate) to within 3e-7.
void silu_times(const float* gate, const float* up, int64_t count, float* out) {
    for (int64_t i = 0; i < count; ++i) {
        out[i] = over_one_plus_exp(gate[i], -gate[i]) * up[i];
    }
}

// gelu(gate) · up, in the approximation by tanh: x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), which is
// x / (1 + e^(-2 √(2/π) · (x + 0.044715 x³))), to within 1e-6. `out` may be `up`.
void gelu_times(const float* gate, const float* up, int64_t count, float* out) {
    for (int64_t i = 0; i < count; ++i) {
        const float x = gate[i];
        out[i] = over_one_plus_exp(x, -x * (1.59576912f + 0.0713548163f * (x * x))) * up[i];
    }
}
