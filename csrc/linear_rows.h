// int8 linears, for one instruction set. Each unit includes this text in its anonymous namespace, behind attend_rows.h.

// Rows [first, last) of x as bytes + 128, with what one step is worth.
void quantize_inputs(const Linear& linear, const float* x, int64_t first, int64_t last, float* room, uint8_t* bytes,
                     float* scales) {
    const int64_t k = linear.inputs, padded = padded_inputs(k);
    for (int64_t r = first; r < last; ++r) {
        auto* out = reinterpret_cast<int8_t*>(bytes + r * padded);
        const float* row = x + r * k;
        if (linear.input_scale != nullptr) {
            const float scale = *linear.input_scale, offset = *linear.input_offset;
            for (int64_t i = 0; i < k; ++i) {
                const float step = greater(lesser(row[i] / scale, 4e6f), -4e6f);
                // Rounded before the offset is added, as the ecosystem's runtime does it.
                const float rounded = (step + kRounder) - kRounder;
                out[i] = byte_of(greater(lesser(rounded + offset, 127.0f), -128.0f) + kRounder);
            }
        } else {
            for (int64_t i = 0; i < k; ++i) {
                room[i] = row[i];
            }
            if (linear.hadamard_block != 0) {
                hadamard(room, k, linear.hadamard_block);
            }
            scales[r] = step_of(absolute_peak(room, k));
            round_row(room, scales[r], k, out);
        }
        for (int64_t i = 0; i < k; ++i) {
            out[i] = static_cast<int8_t>(out[i] ^ -128);
        }
        for (int64_t i = k; i < padded; ++i) {
            out[i] = 0;
        }
    }
}

// The outputs of one panel of the packed weight, for all rows.
void linear_panel(const Linear& linear, const uint8_t* bytes, const float* scales, int64_t rows, int64_t panel,
                  float* out) {
    const int64_t n = linear.outputs, depth = padded_inputs(linear.inputs), columns = padded_outputs(n);
    const int64_t first = panel * kPanel, width = smaller(kPanel, columns - first), end = smaller(n, first + width);
    const auto* weight = reinterpret_cast<const uint8_t*>(linear.weight) + first * depth;
    // What comes behind the panel is the next one.
    const char* ahead = first + width < columns ? reinterpret_cast<const char*>(weight) + width * depth : nullptr;
    int32_t products[kStrip * kPanel];
    for (int64_t r = 0; r < rows; r += kStrip) {
        const int64_t count = smaller(kStrip, rows - r);
        multiply<false>(bytes + r * depth, count, weight, depth / 4, width, products, ahead);
        ahead = nullptr;
        for (int64_t i = 0; i < count; ++i) {
            float* y = out + (r + i) * n;
            const int32_t* sums = products + i * width;
            if (linear.input_scale != nullptr) {
                for (int64_t c = first; c < end; ++c) {
                    // Unsigned, because any quant_bias may stand in a file.
                    const uint32_t sum = static_cast<uint32_t>(sums[c - first] - linear.excess[c]);
                    const auto biased = static_cast<int32_t>(sum + static_cast<uint32_t>(linear.quant_bias[c]));
                    y[c] = static_cast<float>(biased) * linear.scale[c];
                }
            } else if (linear.bias != nullptr) {
                for (int64_t c = first; c < end; ++c) {
                    y[c] = static_cast<float>(sums[c - first] - linear.excess[c]) * linear.scale[c] * scales[r + i] +
                           linear.bias[c];
                }
            } else {
                for (int64_t c = first; c < end; ++c) {
                    y[c] = static_cast<float>(sums[c - first] - linear.excess[c]) * linear.scale[c] * scales[r + i];
                }
            }
        }
    }
}
