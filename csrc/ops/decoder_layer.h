#pragma once

#include "isa/kernels.h"

namespace faquant {

// A transformer block with int8 linears, whose MLP is gated by silu or by gelu. Norms without a weight are left out;
// those of outputs come before the residual stream. q_norm and k_norm are over each head, or over all heads together.
struct DecoderLayer {
    Norm attention_norm, q_norm, k_norm, mlp_norm;
    const Linear *q_proj, *k_proj, *v_proj, *o_proj, *gate_proj, *up_proj, *down_proj;
    int64_t rope = 0;  // the kind of its tables
    Norm attention_output_norm = {}, mlp_output_norm = {};
    bool norms_all_heads = false, gelu = false;
};

// The next tokens of some sequences, and the slots of their keys and values.
struct Batch {
    int64_t tokens;
    const float* cos;  // [kinds, tokens, dim] of their positions
    const float* sin;
    const int64_t* slots;      // [tokens] in the cache
    const int64_t* positions;  // [tokens] in their sequences
    const Span* spans;
    int64_t count;  // of spans
    int64_t split;  // as Attention's
};

// A layer with its cache.
struct CachedLayer {
    DecoderLayer layer;
    const Scheme* scheme;
    const Cache* cache;
    int64_t window;  // as Attention's
};

// Numbers of values beyond their static scales.
struct Saturated {
    int64_t q, k, v;
};

// Run the residual streams x [tokens, hidden] through the layers, in place, on up to `threads` threads; `saturated` has
// one element per layer.
void run_layers(const KernelTable& table, const CachedLayer* layers, int64_t count, const Batch& batch, float* x,
                int64_t threads, Saturated* saturated);

}  // namespace faquant
