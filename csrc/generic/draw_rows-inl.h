// The passes over a whole vocabulary for sampling, for one instruction set.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/numbers-inl.h"
#include "generic/reductions-inl.h"

// Below this, 2^y is less than half of the least double.
constexpr double kLowestPower = -1076.0;

// 2^y with a relative error of at most 4e-14, for kLowestPower <= y <= 0, and 0 at that bound. 2^y = 2^n · 2^f with n =
// rint(y), and 2^n in two factors, because it may be subnormal. The polynomial is a Chebyshev fit of (2^f - 1) / f.
double exp2_of(double y) {
    constexpr double rounder = 0x1.8p52;
    const double shifted = y + rounder;
    const double f = y - (shifted - rounder);
    double p = f * 1.0203121063391729e-07 + 1.3255224878668817e-06;
    p = p * f + 1.525268684626772e-05;
    p = p * f + 1.5403455852453838e-04;
    p = p * f + 1.3333558179043112e-03;
    p = p * f + 9.618129159402558e-03;
    p = p * f + 5.5504108664760424e-02;
    p = p * f + 2.402265069581299e-01;
    p = p * f + 6.931471805599453e-01;
    p = p * f + 1.0;
    uint64_t bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 1023 + 128) << 52;
    double power;
    __builtin_memcpy(&power, &bits, sizeof power);
    return p * power * (y > kLowestPower ? 0x1p-128 : 0.0);
}

// A block of a row; if the last one is shorter, a copy padded with -infinity.
template <typename Score>
const Score* whole_block(const Score* scores, int64_t count, int64_t block, Score* scratch) {
    const int64_t first = block * kBlock;
    if (first + kBlock <= count) {
        return scores + first;
    }
    for (int64_t i = 0; i < kBlock; ++i) {
        scratch[i] = first + i < count ? scores[first + i] : static_cast<Score>(-kInfinity);
    }
    return scratch;
}

template <typename Score>
void maxima_of(const Score* scores, int64_t count, double* maxima) {
    Score scratch[kBlock];
    for (int64_t block = 0; block * kBlock < count; ++block) {
        const Score* x = whole_block(scores, count, block, scratch);
        int32_t unordered = 0;  // a maximum ignores NaN
        for (int64_t i = 0; i < kBlock; ++i) {
            unordered |= x[i] != x[i];
        }
        maxima[block] = unordered != 0 ? __builtin_nan("") : static_cast<double>(max_by_halves<kBlock>(x));
    }
}

template <typename Score>
double weights_of(const Score* scores, int64_t count, int64_t block, double top, double factor,
                  double* __restrict weights) {
    Score scratch[kBlock];
    const Score* x = whole_block(scores, count, block, scratch);
    double y[kBlock];
    for (int64_t i = 0; i < kBlock; ++i) {
        y[i] = greater((static_cast<double>(x[i]) - top) * factor, kLowestPower);
    }
    for (int64_t i = 0; i < kBlock; ++i) {
        weights[i] = exp2_of(y[i]);
    }
    return sum_by_halves<kBlock>(weights);
}

void block_maxima(const Scores& scores, double* maxima) {
    if (scores.narrow != nullptr) {
        maxima_of(scores.narrow, scores.count, maxima);
    } else {
        maxima_of(scores.wide, scores.count, maxima);
    }
}

double block_weights(const Scores& scores, int64_t block, double top, double factor, double* weights) {
    return scores.narrow != nullptr ? weights_of(scores.narrow, scores.count, block, top, factor, weights)
                                    : weights_of(scores.wide, scores.count, block, top, factor, weights);
}
