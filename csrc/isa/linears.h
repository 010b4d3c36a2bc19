#pragma once

#include <cstdint>

namespace faquant {

// Steps of a row's greatest input in 16 bits: 127 · 256 + 127, the greatest number of two signed bytes.
constexpr float kWideSteps = 32639.0f;

// Steps of a row's range, from its least to its greatest input, if rows have zero points.
constexpr float kAsymmetricSteps = 255.0f;

// A linear of int8 weights: y = (x8 · W8ᵀ) ⊙ scales + bias. Inputs are quantized with a scale per row, to 8 or 16 bits,
// with a scale and a zero point per row, or to 8 bits with a given scale.
struct Linear {
    int64_t inputs, outputs;
    // Unless the scale is given: of a row's greatest input, 127, 127.5 or kWideSteps, or of its range,
    // kAsymmetricSteps.
    float input_steps;
    const float* input_multiplier;  // [inputs], by which the inputs are multiplied before all else, or null
    int64_t hadamard_block;         // of the inputs, before they are rounded; 0: none
    const int8_t* weight;           // packed (padded_inputs, padded_outputs), padded with zeros
    const int32_t* totals;          // [outputs]: ∑ of a column
    const float* scale;             // [outputs]
    const float* bias;              // [outputs], or null
    // If the scale is given:
    const float* input_scale;  // [1], or null
    const float* input_offset;
    const int32_t* quant_bias;  // [outputs]: the bias and the offset's correction
};

// A linear of float weights: y = x · Wᵀ + bias. A sum starts with 0 and adds the products in order of the inputs, by
// fused multiply-adds, and the bias last. One of the weights is null.
struct FloatLinear {
    int64_t inputs, outputs;
    const float* weight;              // packed (inputs, padded_outputs), padded with zeros
    const uint16_t* bfloat16_weight;  // packed (inputs up to an even number, padded_outputs)
    const float* bias;                // [outputs], or null
};

// The rows of bytes that a row of this linear's inputs becomes: with 16 bits one of high and one of low bytes, both
// signed, so that an input is 256 · high + low.
static constexpr int64_t rows_of_bytes(const Linear& linear) {
    return linear.input_scale == nullptr && linear.input_steps == kWideSteps ? 2 : 1;
}

// Quantized rows of inputs: bytes [count, rows_of_bytes, padded_inputs], the scale of each row, and the byte that
// stands for 0, which is 128 unless rows have zero points.
struct Rounded {
    int64_t count;
    uint8_t* bytes;
    float* scales;
    int32_t* zeros;
};

// y = x / rms(x) ⊙ weight (+ bias).
struct Norm {
    const float* weight;  // null: no norm
    const float* bias;
    float eps;
};

// A row of scores by token; one of the pointers is null.
struct Scores {
    int64_t count;
    const float* narrow;
    const double* wide;
};

}  // namespace faquant
