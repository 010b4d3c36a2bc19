#pragma once

#include "isa/kernels.h"

namespace faquant {

// Packs weight int8 [outputs, inputs] for Linear.weight and Linear.totals, on up to `threads` threads.
void pack_weight(const int8_t* weight, int64_t outputs, int64_t inputs, int8_t* packed, int32_t* totals,
                 int64_t threads);

// Packs weight [outputs, inputs], float32 or bfloat16, for a FloatLinear.
void pack_float_weight(const void* weight, bool is_bfloat16, int64_t outputs, int64_t inputs, void* packed,
                       int64_t threads);

// The input of the linears in one call: x [rows, inputs], after a norm if it has a weight.
struct Inputs {
    const float* x;
    int64_t rows;
    Norm norm;
};

// A linear whose outputs are stored in out [rows, outputs] or added to it.
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
