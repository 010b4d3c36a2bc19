// Sums and maxima of a row in a defined order, for one instruction set.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/numbers-inl.h"

// x[i] + x[i + width / 2] for all i, and so on down to one.
template <int64_t width, typename Number>
Number sum_by_halves(const Number* x) {
    if constexpr (width == 1) {
        return x[0];
    } else {
        Number half[width / 2];
        for (int64_t i = 0; i < width / 2; ++i) {
            half[i] = x[i] + x[i + width / 2];
        }
        return sum_by_halves<width / 2>(half);
    }
}

// By halves like sum_by_halves, because compilers do not vectorize a plain loop for a maximum.
template <int64_t width, typename Number>
Number max_by_halves(const Number* x) {
    if constexpr (width == 1) {
        return x[0];
    } else {
        Number half[width / 2];
        for (int64_t i = 0; i < width / 2; ++i) {
            half[i] = greater(x[i], x[i + width / 2]);
        }
        return max_by_halves<width / 2>(half);
    }
}

// The sum of x [dim], padded with zeros to a power of two, by halves; x is overwritten.
float tree_sum(float* x, int64_t dim) {
    int64_t width = 1;
    while (width < dim) {
        width *= 2;
    }
    for (int64_t i = dim; i < width; ++i) {
        x[i] = 0.0f;
    }
    while (width > 1) {
        width /= 2;
        for (int64_t i = 0; i < width; ++i) {
            x[i] += x[i + width];
        }
    }
    return x[0];
}
