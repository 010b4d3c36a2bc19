// Linears with float weights, for one instruction set.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/float_products-inl.h"
#include "generic/numbers-inl.h"

// Rows that share a part of a panel in the L2 cache, and the number of inputs in that part.
constexpr int64_t kFloatStrip = 16 * kFloatRows, kFloatDepth = 256;

template <int in_word>
void float_panels_of(const FloatLinear& l, const void* weight, const float* x, int64_t rows, int64_t first,
                     int64_t last, float* out) {
    alignas(64) float sums[kFloatStrip * kPanel];
    const int64_t words = (l.inputs + in_word - 1) / in_word;
    for (int64_t column = first * kPanel; column < smaller(last * kPanel, l.outputs); column += kPanel) {
        const auto* panel = static_cast<const uint8_t*>(weight) + column * words * 4;
        const int64_t width = smaller(kPanel, padded_outputs(l.outputs) - column);
        const int64_t count = smaller(kPanel, l.outputs - column);
        for (int64_t r = 0; r < rows; r += kFloatStrip) {
            const int64_t some = smaller(kFloatStrip, rows - r);
            const int64_t depth = some <= kFloatRows ? l.inputs : kFloatDepth;
            for (int64_t i = 0; i < some * kPanel; ++i) {
                sums[i] = 0.0f;
            }
            for (int64_t k = 0; k < l.inputs; k += depth) {
                const FloatPanel piece = {panel + k / in_word * width * 4, 4 * width, width,
                                          smaller(depth, l.inputs - k)};
                add_float_products<in_word>(x + r * l.inputs + k, l.inputs, some, piece, sums, kPanel);
            }
            for (int64_t i = 0; i < some; ++i) {
                const float* __restrict from = sums + i * kPanel;
                float* __restrict y = out + (r + i) * l.outputs + column;
                for (int64_t c = 0; c < count; ++c) {
                    y[c] = l.bias == nullptr ? from[c] : from[c] + l.bias[column + c];
                }
            }
        }
    }
}

void float_panels(const FloatLinear& linear, const float* x, int64_t rows, int64_t first, int64_t last, float* out) {
    if (linear.weight != nullptr) {
        float_panels_of<1>(linear, linear.weight, x, rows, first, last, out);
    } else {
        float_panels_of<2>(linear, linear.bfloat16_weight, x, rows, first, last, out);
    }
}
