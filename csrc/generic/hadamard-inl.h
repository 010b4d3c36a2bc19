// The Hadamard transform of a row, for one instruction set.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/numbers-inl.h"

// (a, b) → (a + b, a - b) for all pairs `half` apart within kLanes elements, with vector instructions.
template <int64_t half>
void butterflies(float* x, int64_t dim) {
    for (int64_t i = 0; i < dim; i += kLanes) {
        float y[kLanes];
        for (int64_t j = 0; j < kLanes; ++j) {
            y[j] = x[i + (j ^ half)] + ((j & half) != 0 ? -x[i + j] : x[i + j]);
        }
        for (int64_t j = 0; j < kLanes; ++j) {
            x[i + j] = y[j];
        }
    }
}

// The same for pairs `half` apart, `together` of them at a time.
template <int64_t together>
void butterflies(float* x, int64_t dim, int64_t half) {
    for (int64_t i = 0; i < dim; i += 2 * half) {
        for (int64_t k = i; k < i + half; k += together) {
            float* __restrict low = x + k;
            float* __restrict high = x + k + half;
            for (int64_t j = 0; j < together; ++j) {
                const float a = low[j], b = high[j];
                low[j] = a + b;
                high[j] = a - b;
            }
        }
    }
}

// quantizers.hadamard of x [dim], in place.
void hadamard(float* x, int64_t dim, int64_t block) {
    if (block < kLanes) {
        for (int64_t half = 1; half < block; half *= 2) {
            butterflies<1>(x, dim, half);
        }
    } else {
        butterflies<1>(x, dim);
        butterflies<2>(x, dim);
        butterflies<4>(x, dim);
        butterflies<8>(x, dim);
        for (int64_t half = kLanes; half < block; half *= 2) {
            butterflies<kLanes>(x, dim, half);
        }
    }
    const float unit = inverse_sqrt_of(block);
    for (int64_t i = 0; i < dim; ++i) {
        x[i] *= unit;
    }
}
