#pragma once

#include "isa/kernels.h"

namespace faquant {

// weight int8 [outputs, inputs] as Linear.weight and Linear.excess want it, on up to `threads` threads.
void pack_weight(const int8_t* weight, int64_t outputs, int64_t inputs, int8_t* packed, int32_t* excess,
                 int64_t threads);

// weight [outputs, inputs] of float32, or else of bfloat16, as a FloatLinear wants it.
void pack_float_weight(const void* weight, bool is_bfloat16, int64_t outputs, int64_t inputs, void* packed,
                       int64_t threads);

// What the linears of one call read: x [rows, inputs], behind a norm if it has a weight.
struct Inputs {
    const float* x;
    int64_t rows;
    Norm norm;
};

// One linear's outputs, stored in out [rows, outputs] or added to it.
struct Product {
    const Linear* linear;
    float* out;
    bool add;
};

// All products of the same inputs, on up to `threads` threads.
void apply(const KernelTable& table, const Inputs& inputs, const Product* products, int64_t count, int64_t threads);

// out [rows, outputs] = the linear of x [rows, inputs].
void apply(const KernelTable& table, const FloatLinear& linear, const float* x, int64_t rows, float* out,
           int64_t threads);

// out [rows, outputs] = silu(gate) · up of the same inputs.
void apply_gated(const KernelTable& table, const Inputs& inputs, const Linear& gate, const Linear& up, float* out,
                 int64_t threads);

}  // namespace faquant
