#pragma once

#include <cstdint>

namespace faquant {

// A linear of int8 weights: y = (x8 · W8ᵀ) ⊙ scales + bias. Inputs are quantized with a scale per row, or with a given
// one.
struct Linear {
    int64_t inputs, outputs;
    float input_steps;              // of the greatest input of a row, unless the scale is given: 127 or 127.5
    const float* input_multiplier;  // [inputs], by which the inputs are multiplied before all else, or null
    int64_t hadamard_block;         // of the inputs, before they are rounded; 0: none
    const int8_t* weight;           // packed (padded_inputs, padded_outputs), padded with zeros
    const int32_t* excess;          // [outputs]: 128 · ∑ of a column, because the inputs are bytes + 128
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

// Quantized rows of inputs: bytes + 128 [count, padded_inputs], and the scale of each row.
struct Rounded {
    int64_t count;
    uint8_t* bytes;
    float* scales;
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
