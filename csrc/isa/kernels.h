#pragma once

#include <cstdint>

namespace faquant {

// A dot product of this many full-range 8-bit values is the longest that is sure to fit into int32.
constexpr int64_t kMaxDotLength = 65536;

// Keys that share one scale of P. Tiles start at multiples of it, and pages hold whole tiles.
constexpr int64_t kTile = 128;
// Sums of this many products of two bytes are the longest that float32 is sure to hold.
constexpr int64_t kMaxHeadDim = 1024;
// Channels of a head are filled up to a multiple of it in the cache.
constexpr int64_t kPadding = 16;
// Columns of a packed matrix that stand together.
constexpr int64_t kPanel = 64;
// Query rows that go through a tile together.
constexpr int64_t kStrip = 16;

static constexpr int64_t padded_dim(int64_t dim) {
    return (dim + kPadding - 1) / kPadding * kPadding;
}

// How one layer's q, k and v become int8: kernels/scheme.py. Tables are float32; null: there is none. A bfloat16 cache
// looks at the sizes only.
struct Scheme {
    int64_t heads, kv_heads, dim;
    int64_t maps, map_block;  // map m of K is that of the positions from m · map_block on
    const float* k_center;    // [maps, kv_heads, dim]
    const float* k_equalizer;
    int64_t rotation_block;
    const float* rotation_sign;  // [dim]
    int64_t v_rotation_block;
    const float* q_scale;  // [heads, dim]; null: dynamic
    bool q_by_channel;     // else a row of q_scale holds one number
    const float* k_scale;  // [kv_heads, dim]; null: per token
    bool k_by_channel;
    const float* k_offset;  // [kv_heads, dim]
    const float* v_scale;
    const float* v_offset;
    int32_t p_levels;
    bool quantized_sum;
};

// The cache pages of one layer, int8 or bfloat16. Slot s is key s % page_size of page s / page_size. What no query sees
// may hold anything.
//
// A tile of one head is contiguous, a packed matrix of K [channels, keys] or V [keys, channels]: panels of kPanel
// columns, the last one narrower, in each of them a word's rows (four of int8, two of bfloat16) after a word's rows,
// and of those column after column.
struct Cache {
    int64_t pages, page_size;
    uint8_t* k;         // [pages, kv_heads, page_size / kTile, packed (padded_dim, kTile)]: K + 128
    int8_t* v;          // [pages, kv_heads, page_size / kTile, packed (kTile, padded_dim)]
    uint16_t* k_scale;  // float16 [pages, kv_heads, page_size], where the scheme has none
    uint16_t* v_scale;
    uint16_t* bfloat16_k = nullptr;  // in place of all these, in the same shapes as k and v
    uint16_t* bfloat16_v = nullptr;
};

// Some of one sequence's tokens, with the cache pages of the whole sequence.
struct Span {
    int64_t first;  // of its rows in q and out
    int64_t tokens;
    int64_t start;  // the first token's number in its sequence
    const int64_t* block_table;
};

// Causal attention of each span's queries over the keys of its sequence up to their own.
// README.md in faquant/kernels has the mathematics.
struct Attention {
    const Scheme* scheme;
    const Cache* cache;
    int64_t window;  // keys that a query sees, itself included
    int64_t split;   // keys whose tiles are merged in one run; a multiple of kTile
    const float* q;  // [tokens, heads, dim], after RoPE
    float* out;      // [tokens, heads, dim]
};

// Softmax over some of the keys, for each row of a block.
struct Partial {
    float* max;  // [rows]
    float* sum;  // [rows]
    float* out;  // [rows, padded dim]
};

// Room to work in, for blocks of up to some number of rows.
struct Scratch {
    Partial split;
    // For int8:
    int8_t* q;          // [rows, padded dim]
    float* scale;       // [rows], of q and the softmax, in log2 units
    float* bias;        // [rows], added to every score
    int32_t* excess;    // [rows]: 128 · ∑ q
    uint8_t* p;         // [2 · kStrip, kTile]
    int32_t* products;  // [2 · kStrip, max(kTile, padded dim)]
    // For bfloat16:
    float* factors;  // [rows, padded dim]: q
    float* sums;     // [kStrip, padded dim]
    uint16_t* v;     // a tile
};

// A linear of int8 weights: y = (x8 · W8ᵀ) ⊙ scales + bias. Inputs are rounded with a scale per row, or with the given
// one.
struct Linear {
    int64_t inputs, outputs;
    int64_t hadamard_block;  // of the inputs, before they are rounded; 0: none
    const int8_t* weight;    // packed (padded_inputs, padded_outputs), zeros where there is nothing
    const int32_t* excess;   // [outputs]: 128 · ∑ of a column, because the inputs are bytes + 128
    const float* scale;      // [outputs]
    const float* bias;       // [outputs], or null
    // Where the scale is given:
    const float* input_scale;  // [1], or null
    const float* input_offset;
    const int32_t* quant_bias;  // [outputs]: the bias, and what the offset adds
};

// Rows of inputs as a linear takes them: bytes + 128 [count, padded_inputs], and what one step of each is worth.
struct Rounded {
    int64_t count;
    uint8_t* bytes;
    float* scales;
};

// y = x / rms(x) ⊙ weight (+ bias).
struct Norm {
    const float* weight;  // null: there is no norm
    const float* bias;
    float eps;
};

// One transformer block whose linears are all int8, named as the checkpoint's modules.
struct DecoderLayer {
    Norm input_layernorm, q_norm, k_norm, post_attention_layernorm;
    const Linear *q_proj, *k_proj, *v_proj, *o_proj, *gate_proj, *up_proj, *down_proj;
};

// A row of scores by token; one of the pointers is null.
struct Scores {
    int64_t count;
    const float* narrow;
    const double* wide;
};

// Scores of which sum and maximum are taken together.
constexpr int64_t kBlock = 64;

static constexpr int64_t padded_inputs(int64_t inputs) {
    return (inputs + 3) / 4 * 4;
}

static constexpr int64_t padded_outputs(int64_t outputs) {
    return (outputs + kPadding - 1) / kPadding * kPadding;
}

// What one instruction set offers. Every function gives the same bits in every table.
//
// The units that fill these tables are compiled with flags of their own. They use no std templates and no inline
// functions: the linker keeps one copy of those, and if it kept theirs, it would run on CPUs that cannot.
struct KernelTable {
    const char* name;
    // sum of a[i]·b[i], exact for n <= kMaxDotLength; no alignment needed, nothing outside [0, n) is read
    int32_t (*dot_u8s8)(const uint8_t* a, const int8_t* b, int64_t n);
    int32_t (*dot_s8s8)(const int8_t* a, const int8_t* b, int64_t n);
    // Round and store the tokens [first, last) of k and v [tokens, kv_heads, dim]; `saturated` counts what was
    // beyond k's and v's static scales.
    void (*append)(const Scheme& scheme, const Cache& cache, const float* k, const float* v, const int64_t* slots,
                   const int64_t* positions, int64_t first, int64_t last, int64_t saturated[2]);
    // The softmax of the tokens [first, last) of a span over the keys [begin, end), both multiples of the split but
    // for the sequence's end, in the query heads of one key/value head; each split's is merged into `total`.
    // Returns how many values of q were beyond its static scale.
    int64_t (*attend)(const Attention& a, const Span& span, int64_t kv_head, int64_t first, int64_t last, int64_t begin,
                      int64_t end, const Scratch& scratch, const Partial& total);
    // Rows x [count, inputs] as the linear takes them; `room` holds a row.
    void (*quantize_inputs)(const Linear& linear, const float* x, float* room, const Rounded& rows);
    // Some panels of the weight, of all rows, stored in out [rows, outputs] or added to it.
    void (*linear_panels)(const Linear& linear, const Rounded& rows, int64_t first, int64_t last, bool add, float* out);
    // The same of silu(gate) · up, where both have their own rounding of the same rows.
    void (*gated_panels)(const Linear& gate, const Rounded& gate_rows, const Linear& up, const Rounded& up_rows,
                         int64_t first, int64_t last, float* out);
    // What stands between the products: elementwise_rows.h.
    void (*rms_norm)(const Norm& norm, const float* x, int64_t rows, int64_t size, float* out);
    void (*rope)(float* x, const float* cos, const float* sin, int64_t tokens, int64_t heads, int64_t dim);
    void (*silu_times)(const float* gate, const float* up, int64_t count, float* out);
    // Merge `count` more partials of `rows` rows into `total`, in order, divide by the sums and turn V back.
    void (*finish)(const Partial* parts, int64_t count, int64_t rows, const Scheme& scheme, const Partial& total);
    // The greatest score of each block of a row, the last of which may be shorter; NaN where there is one.
    void (*block_maxima)(const Scores& scores, double* maxima);
    // 2^((score - top) · factor) for each score of a block, none above `top`, and zeros up to kBlock; their sum.
    double (*block_weights)(const Scores& scores, int64_t block, double top, double factor, double* weights);
};

extern const KernelTable kPortableKernels;
#ifdef FAQUANT_X86
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512VnniKernels;
#endif
#ifdef FAQUANT_AVXVNNI
extern const KernelTable kAvxVnniKernels;
extern const KernelTable kAvxVnniEvexKernels;
#endif

}  // namespace faquant
