#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "right.h"

namespace faquant {
namespace {

void forget_hadamard(Linear& linear) {
    linear.hadamard_block = 0;
}

void forget_steps(Linear& linear) {
    linear.input_steps = 127.0f;
}

void forget_multiplier(Linear& linear) {
    linear.input_multiplier = nullptr;
}

void forget_static_multiplier(Linear& linear) {
    if (linear.input_scale != nullptr) {
        linear.input_multiplier = nullptr;
    }
}

void forget_input_offset(Linear& linear) {
    static constexpr float kZero = 0.0f;
    linear.input_offset = &kZero;
}

template <void (*change)(Linear&)>
void quantize_inputs_with(const Linear& linear, const float* x, float* scratch, const Rounded& rows) {
    Linear changed = linear;
    change(changed);
    right.quantize_inputs(changed, x, scratch, rows);
}

void quantize_inputs_without_low_bytes(const Linear& linear, const float* x, float* scratch, const Rounded& rows) {
    right.quantize_inputs(linear, x, scratch, rows);
    const int64_t depth = padded_inputs(linear.inputs), parts = rows_of_bytes(linear);
    for (int64_t r = 1; r < rows.count * parts; r += parts) {
        if (parts == 2) {
            std::fill_n(rows.bytes + r * depth, linear.inputs, uint8_t{128});
        }
    }
}

void quantize_inputs_without_zeros(const Linear& linear, const float* x, float* scratch, const Rounded& rows) {
    right.quantize_inputs(linear, x, scratch, rows);
    std::fill_n(rows.zeros, rows.count, 128);
}

void quantize_inputs_beyond_range(const Linear& linear, const float* x, float* scratch, const Rounded& rows) {
    right.quantize_inputs(linear, x, scratch, rows);
    const int64_t depth = padded_inputs(linear.inputs);
    for (int64_t r = 0; linear.input_steps == kAsymmetricSteps && r < rows.count; ++r) {
        // The greatest of halves is 256, which a byte does not hold.
        if (rows.zeros[r] == 128 && rows.scales[r] == 1.0f) {
            std::replace(rows.bytes + r * depth, rows.bytes + r * depth + linear.inputs, uint8_t{255}, uint8_t{0});
        }
    }
}

void panels_without_bias(const Linear& linear, const Rounded& rows, int64_t first, int64_t last, bool add, float* out) {
    Linear changed = linear;
    changed.bias = nullptr;
    right.linear_panels(changed, rows, first, last, add, out);
}

void panels_stored(const Linear& linear, const Rounded& rows, int64_t first, int64_t last, bool, float* out) {
    right.linear_panels(linear, rows, first, last, false, out);
}

void panels_added(const Linear& linear, const Rounded& rows, int64_t first, int64_t last, bool, float* out) {
    right.linear_panels(linear, rows, first, last, true, out);
}

void panels_nudged_in_row_21(const Linear& linear, const Rounded& rows, int64_t first, int64_t last, bool add,
                             float* out) {
    right.linear_panels(linear, rows, first, last, add, out);
    if (rows.count > 21) {
        nudge(out[21 * linear.outputs]);
    }
}

void panels_nudged_with_wide_inputs(const Linear& linear, const Rounded& rows, int64_t first, int64_t last, bool add,
                                    float* out) {
    right.linear_panels(linear, rows, first, last, add, out);
    if (rows_of_bytes(linear) == 2) {
        nudge(out[0]);
    }
}

void panels_nudged_with_zeros(const Linear& linear, const Rounded& rows, int64_t first, int64_t last, bool add,
                              float* out) {
    right.linear_panels(linear, rows, first, last, add, out);
    if (linear.input_steps == kAsymmetricSteps) {
        nudge(out[0]);
    }
}

void gated_panels_nudged_with_wide_inputs(const Linear& gate, const Rounded& gate_rows, const Linear& up,
                                          const Rounded& up_rows, int64_t first, int64_t last, float* out) {
    right.gated_panels(gate, gate_rows, up, up_rows, first, last, out);
    if (rows_of_bytes(up) == 2) {
        nudge(out[0]);
    }
}

void gated_panels_without_zeros(const Linear& gate, const Rounded& gate_rows, const Linear& up, const Rounded& up_rows,
                                int64_t first, int64_t last, float* out) {
    std::vector<int32_t> zeros(static_cast<size_t>(up_rows.count), 128);
    right.gated_panels(gate, gate_rows, up, {up_rows.count, up_rows.bytes, up_rows.scales, zeros.data()}, first, last,
                       out);
}

void gated_panels_but_the_last(const Linear& gate, const Rounded& gate_rows, const Linear& up, const Rounded& up_rows,
                               int64_t first, int64_t last, float* out) {
    right.gated_panels(gate, gate_rows, up, up_rows, first, last - (last * kPanel >= up.outputs), out);
}

void gated_panels_exchanged(const Linear& gate, const Rounded& gate_rows, const Linear& up, const Rounded& up_rows,
                            int64_t first, int64_t last, float* out) {
    right.gated_panels(up, up_rows, gate, gate_rows, first, last, out);
}

void float_panels_without_bias(const FloatLinear& linear, const float* x, int64_t rows, int64_t first, int64_t last,
                               float* out) {
    FloatLinear changed = linear;
    changed.bias = nullptr;
    right.float_panels(changed, x, rows, first, last, out);
}

// The first output of each panel, with two roundings per product.
void float_panels_not_fused(const FloatLinear& linear, const float* x, int64_t rows, int64_t first, int64_t last,
                            float* out) {
    right.float_panels(linear, x, rows, first, last, out);
    if (linear.weight == nullptr) {
        return;
    }
    for (int64_t panel = first; panel < last; ++panel) {
        const int64_t n = panel * kPanel, width = std::min(kPanel, padded_outputs(linear.outputs) - n);
        float sum = 0.0f;
        for (int64_t k = 0; k < linear.inputs; ++k) {
            sum += x[k] * linear.weight[n * linear.inputs + k * width];
        }
        out[n] = sum + linear.bias[n];
    }
}

void float_panels_nudged_in_bfloat16(const FloatLinear& linear, const float* x, int64_t rows, int64_t first,
                                     int64_t last, float* out) {
    right.float_panels(linear, x, rows, first, last, out);
    if (linear.weight == nullptr) {
        nudge(out[first * kPanel]);
    }
}

}  // namespace
}  // namespace faquant
