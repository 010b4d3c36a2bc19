#pragma once

#include "kernels.h"

namespace faquant {

// weight int8 [outputs, inputs] as Linear.weight and Linear.excess want it.
void pack_weight(const int8_t* weight, int64_t outputs, int64_t inputs, int8_t* packed, int32_t* excess);

// out [rows, outputs] of x [rows, inputs], on up to `threads` threads.
void apply(const KernelTable& table, const Linear& linear, const float* x, int64_t rows, float* out, int64_t threads);

}  // namespace faquant
