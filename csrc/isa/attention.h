#pragma once

#include <cstdint>

namespace faquant {

// How one layer's q, k and v are quantized: see kernels/scheme.py. Tables are float32; null: none. A float cache only
// uses the sizes.
struct Scheme {
    int64_t heads, kv_heads, dim;
    int64_t maps, map_block;  // map m of K applies to positions from m · map_block on
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
    bool p_float16;  // whether P is rounded to float16 first
    bool quantized_sum;
};

// The cache pages of one layer, int8, bfloat16 or float32. Slot s is key s % page_size of page s / page_size. Keys and
// values that no query sees may hold any bytes.
//
// A tile of one head is contiguous, a packed matrix of K [channels, keys] or V [keys, channels].
struct Cache {
    int64_t pages, page_size;
    uint8_t* k;         // [pages, kv_heads, page_size / kTile, packed (padded_dim, kTile)]: K + 128
    int8_t* v;          // [pages, kv_heads, page_size / kTile, packed (kTile, padded_dim)]
    uint16_t* k_scale;  // float16 [pages, kv_heads, page_size], if the scheme has none
    uint16_t* v_scale;
    uint16_t* bfloat16_k = nullptr;  // instead of all these, with the shapes of k and v
    uint16_t* bfloat16_v = nullptr;
    float* float_k = nullptr;  // instead of all these, unpacked: [pages, page_size, kv_heads, dim]
    float* float_v = nullptr;
    // Elements from a page to the next one in each of k and v, and of their scales: more than a page of them has, if
    // pages lie in memory that also holds other things.
    int64_t stride = 0, scale_stride = 0;
};

// Some of one sequence's tokens, with the cache pages of the whole sequence.
struct Span {
    int64_t first;  // its first row in q and out
    int64_t tokens;
    int64_t start;  // the first token's position in its sequence
    const int64_t* block_table;
};

// Causal attention of each span's queries over the keys of its sequence. See README.md in faquant/kernels for the
// mathematics.
struct Attention {
    const Scheme* scheme;
    const Cache* cache;
    int64_t window;  // keys that a query sees, itself included
    int64_t split;   // keys whose tiles are merged first; a multiple of kTile
    const float* q;  // [tokens, heads, dim], after RoPE
    float* out;      // [tokens, heads, dim]
};

// Softmax over a part of the keys, for each row of a block.
struct Partial {
    float* max;  // [rows]
    float* sum;  // [rows]
    float* out;  // [rows, padded dim]
};

// Buffers for blocks of up to some number of rows.
struct Scratch {
    Partial split;
    // For int8:
    int8_t* q;          // [rows, padded dim]
    float* scale;       // [rows], of q and the softmax, in log2 units
    float* bias;        // [rows], added to every score
    int32_t* excess;    // [rows]: 128 · ∑ q
    uint8_t* p;         // [2 · kStrip, kTile]
    int32_t* products;  // [2 · kStrip, max(kTile, padded dim)]
    // For bfloat16 and float32:
    float* factors;  // [rows, padded dim]: q
    float* sums;     // [kStrip, padded dim]
    uint16_t* v;     // a tile
    // For float32:
    float* float_k;  // a tile, packed (dim, kTile)
    float* float_v;  // a tile [kTile, padded dim]
};

}  // namespace faquant
