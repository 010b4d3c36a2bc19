// int8 linears, for one instruction set.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/elementwise_rows-inl.h"
#include "generic/hadamard-inl.h"
#include "generic/multiply_rows-inl.h"
#include "generic/quantize_rows-inl.h"

// x / scale to the nearest integer of 16 bits, as two rows of bytes + 128.
void round_wide_row(const float* x, float scale, int64_t count, uint8_t* __restrict high, uint8_t* __restrict low) {
    for (int64_t i = 0; i < count; ++i) {
        const float rounded = greater(lesser(x[i] / scale, kWideSteps), -kWideSteps) + kRounder;
        // The bytes of a number of two signed bytes + 128 are those bytes + 128.
        const uint32_t bytes = bits_of(rounded) - kRounderBits + (128 * 256 + 128);
        high[i] = static_cast<uint8_t>(bytes >> 8);
        low[i] = static_cast<uint8_t>(bytes);
    }
}

// The scale of a row and the byte that stands for 0: 256 bytes reach from its least to its greatest value. These are
// compared as bits, because comparing floats would ignore NaN; of negative numbers, the one with the most bits is
// least.
struct Range {
    float scale, zero;
};

Range range_of(const float* x, int64_t count) {
    int32_t greatest = 0;
    uint32_t least = 0x80000000u;
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t bits = bits_of(x[i]);
        const auto ordered = static_cast<int32_t>(bits);
        greatest = ordered > greatest ? ordered : greatest;
        least = bits > least ? bits : least;
    }
    const float low = float_of(least);
    const float scale = step_of(float_of(static_cast<uint32_t>(greatest)) - low, kAsymmetricSteps);
    return {scale, lesser(greater(-low / scale, 0.0f), kAsymmetricSteps) + kRounder - kRounder};
}

void round_asymmetric_row(const float* x, float scale, float zero, int64_t count, uint8_t* __restrict out) {
    for (int64_t i = 0; i < count; ++i) {
        // Two values of half a step are both rounded up, which is one step too many.
        const float byte = (x[i] / scale + kRounder) - kRounder + zero;
        out[i] = static_cast<uint8_t>(byte_of(greater(lesser(byte, kAsymmetricSteps), 0.0f) + kRounder));
    }
}

void quantize_inputs(const Linear& linear, const float* x, float* scratch, const Rounded& rows) {
    const int64_t k = linear.inputs, padded = padded_inputs(k), parts = rows_of_bytes(linear);
    for (int64_t r = 0; r < rows.count; ++r) {
        uint8_t* bytes = rows.bytes + r * parts * padded;
        for (int64_t part = 0; part < parts; ++part) {
            for (int64_t i = k; i < padded; ++i) {
                bytes[part * padded + i] = 0;
            }
        }
        auto* out = reinterpret_cast<int8_t*>(bytes);
        rows.zeros[r] = 128;
        const float* row = x + r * k;
        if (linear.input_multiplier != nullptr) {
            for (int64_t i = 0; i < k; ++i) {
                scratch[i] = row[i] * linear.input_multiplier[i];
            }
            row = scratch;
        }
        if (linear.input_scale != nullptr) {
            const float scale = *linear.input_scale, offset = *linear.input_offset;
            for (int64_t i = 0; i < k; ++i) {
                const float step = greater(lesser(row[i] / scale, 4e6f), -4e6f);
                // Rounded before the offset is added, as in MindIE.
                const float rounded = (step + kRounder) - kRounder;
                out[i] = byte_of(greater(lesser(rounded + offset, 127.0f), -128.0f) + kRounder);
            }
        } else {
            if (linear.hadamard_block != 0) {
                for (int64_t i = 0; i < k; ++i) {
                    scratch[i] = row[i];
                }
                hadamard(scratch, k, linear.hadamard_block);
                row = scratch;
            }
            if (linear.input_steps == kAsymmetricSteps) {
                const Range range = range_of(row, k);
                rows.scales[r] = range.scale;
                rows.zeros[r] = static_cast<int32_t>(range.zero);
                round_asymmetric_row(row, range.scale, range.zero, k, bytes);
                continue;
            }
            rows.scales[r] = step_of(absolute_peak(row, k), linear.input_steps);
            if (parts == 2) {
                round_wide_row(row, rows.scales[r], k, bytes, bytes + padded);
                continue;
            }
            // With 127 steps no value is below -127, so all 256 bytes may be used.
            round_row(row, rows.scales[r], k, out, -128.0f);
        }
        for (int64_t i = 0; i < k; ++i) {
            out[i] = static_cast<int8_t>(out[i] ^ -128);
        }
    }
}

// Rows of bytes that share each read of a panel.
constexpr int64_t kLinearRows = 32;

// One panel of a packed weight.
struct Panel {
    const Linear& linear;
    int64_t parts;         // rows of bytes of a row of inputs
    int64_t first, count;  // outputs
    int64_t depth, width;  // of the packed matrix
    const uint8_t* weight;

    Panel(const Linear& l, int64_t number)
        : linear(l),
          parts(rows_of_bytes(l)),
          first(number * kPanel),
          count(smaller(kPanel, l.outputs - first)),
          depth(padded_inputs(l.inputs)),
          width(smaller(kPanel, padded_outputs(l.outputs) - first)),
          weight(reinterpret_cast<const uint8_t*>(l.weight) + first * depth) {}

    // The next panel follows in memory, if there is one.
    Prefetch next() const {
        const int64_t columns = smaller(kPanel, padded_outputs(linear.outputs) - first - width);
        return {reinterpret_cast<const char*>(weight + width * depth), columns * depth / kCacheLine};
    }

    // The products of some rows of inputs with the panel, [rows, parts, width].
    void multiply_rows(const Rounded& rows, int64_t row, int64_t some, int32_t* products, Prefetch next) const {
        multiply_panel<false>(rows.bytes + row * parts * depth, depth, some * parts, weight, depth / 4, width, products,
                              width, next);
    }

    // The outputs of row `row` from the products of rows from `start` on.
    void scale(const int32_t* products, int64_t start, const Rounded& rows, int64_t row, float* y) const {
        const int32_t* sums = products + (row - start) * parts * width;
        const int32_t* totals = linear.totals + first;
        const float* unit = linear.scale + first;
        const int32_t zero = rows.zeros[row];
        if (linear.input_scale != nullptr) {
            const int32_t* bias = linear.quant_bias + first;
            for (int64_t c = 0; c < count; ++c) {
                // Unsigned, because files may have any quant_bias.
                const uint32_t sum = static_cast<uint32_t>(sums[c] - zero * totals[c]) + static_cast<uint32_t>(bias[c]);
                y[c] = static_cast<float>(static_cast<int32_t>(sum)) * unit[c];
            }
            return;
        }
        const float step = rows.scales[row];
        if (parts == 2) {
            const int32_t* low = sums + width;
            for (int64_t c = 0; c < count; ++c) {
                // Below 2^39, exact.
                const double sum = 256.0 * (sums[c] - zero * totals[c]) + (low[c] - zero * totals[c]);
                y[c] = static_cast<float>(sum) * unit[c] * step;
            }
        } else {
            for (int64_t c = 0; c < count; ++c) {
                y[c] = static_cast<float>(sums[c] - zero * totals[c]) * unit[c] * step;
            }
        }
        if (linear.bias != nullptr) {
            for (int64_t c = 0; c < count; ++c) {
                y[c] += linear.bias[first + c];
            }
        }
    }
};

void linear_panels(const Linear& linear, const Rounded& rows, int64_t first, int64_t last, bool add, float* out) {
    const int64_t parts = rows_of_bytes(linear), at_once = smaller(kLinearRows / parts, rows.count);
    const Multiplying<uint8_t> multiplying(at_once * parts);
    alignas(64) int32_t products[kLinearRows * kPanel];
    float sums[kPanel];
    for (int64_t number = first; number < last; ++number) {
        const Panel panel(linear, number);
        Prefetch next = panel.next();
        for (int64_t r = 0; r < rows.count; r += at_once) {
            const int64_t count = smaller(at_once, rows.count - r);
            panel.multiply_rows(rows, r, count, products, next);
            next.lines = 0;
            for (int64_t row = r; row < r + count; ++row) {
                float* __restrict y = out + row * linear.outputs + panel.first;
                panel.scale(products, r, rows, row, add ? sums : y);
                if (add) {
                    for (int64_t c = 0; c < panel.count; ++c) {
                        y[c] += sums[c];
                    }
                }
            }
        }
    }
}

void gated_panels(const Linear& gate, const Rounded& gate_rows, const Linear& up, const Rounded& up_rows, int64_t first,
                  int64_t last, float* out) {
    const int64_t parts = larger(rows_of_bytes(gate), rows_of_bytes(up));
    const int64_t at_once = smaller(kLinearRows / parts, gate_rows.count);
    const Multiplying<uint8_t> multiplying(at_once * parts);
    alignas(64) int32_t products[kLinearRows * kPanel];
    float gates[kLinearRows][kPanel], ups[kPanel];
    for (int64_t number = first; number < last; ++number) {
        const Panel gate_panel(gate, number), up_panel(up, number);
        Prefetch next_gate = gate_panel.next(), next_up = up_panel.next();
        for (int64_t r = 0; r < gate_rows.count; r += at_once) {
            const int64_t count = smaller(at_once, gate_rows.count - r);
            gate_panel.multiply_rows(gate_rows, r, count, products, next_gate);
            for (int64_t row = r; row < r + count; ++row) {
                gate_panel.scale(products, r, gate_rows, row, gates[row - r]);
            }
            up_panel.multiply_rows(up_rows, r, count, products, next_up);
            next_gate.lines = next_up.lines = 0;
            for (int64_t row = r; row < r + count; ++row) {
                up_panel.scale(products, r, up_rows, row, ups);
                silu_times(gates[row - r], ups, up_panel.count, out + row * up.outputs + up_panel.first);
            }
        }
    }
}
