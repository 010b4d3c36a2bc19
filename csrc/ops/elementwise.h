#pragma once

#include "isa/kernels.h"

namespace faquant {

// As in KernelTable, on up to `threads` threads.
void rms_norm(const KernelTable& table, const Norm& norm, const float* x, int64_t rows, int64_t size, float* out,
              int64_t threads);
void rope(const KernelTable& table, float* x, const float* cos, const float* sin, int64_t tokens, int64_t heads,
          int64_t dim, int64_t threads);
// What gates in an MLP.
enum class Activation { kSilu, kGelu };

void gated(const KernelTable& table, Activation activation, const float* gate, const float* up, int64_t count,
           float* out, int64_t threads);

}  // namespace faquant
