#pragma once

#include "isa/kernels.h"

namespace faquant {

// Store `tokens` tokens, quantized if the cache is; as in KernelTable, on up to `threads` threads.
void append(const KernelTable& table, const Scheme& scheme, const Cache& cache, const float* k, const float* v,
            const int64_t* slots, const int64_t* positions, int64_t tokens, int64_t threads, int64_t saturated[2]);

// Keys of a float32 cache whose tiles are merged first.
constexpr int64_t kFloatSplit = 4 * kTile;

// The attention of all spans, on up to `threads` threads. Returns how many values of q were beyond its static scale.
int64_t attend(const KernelTable& table, const Attention& attention, const Span* spans, int64_t count, int64_t threads);

}  // namespace faquant
