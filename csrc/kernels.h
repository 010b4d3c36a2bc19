#pragma once

#include <cstdint>

namespace faquant {

// A dot product of this many full-range 8-bit values is the longest that is sure to fit into int32.
constexpr int64_t kMaxDotLength = 65536;

// Keys that share one scale of P. Tiles start at multiples of it.
constexpr int64_t kTile = 128;
// Sums of this many products of two bytes are the longest that float32 is sure to hold.
constexpr int64_t kMaxHeadDim = 1024;

// Causal int8 attention of `tokens` queries, the first at position `start`, over the keys up to their own.
// README.md in faquant/kernels has the mathematics. Arrays are contiguous; what no query sees may hold anything.
struct Attention {
    int64_t tokens, heads, kv_heads, dim, start;
    int64_t window;  // keys that a query sees, itself included
    int64_t split;   // keys whose tiles are merged in one run; a multiple of kTile
    int32_t p_levels;
    bool quantized_sum;
    int64_t maps, map_block;  // q comes as each map of K wants it; map m is that of the keys from m · map_block on
    const int8_t* q;          // [maps, tokens, heads, dim]
    const float* q_scale;     // [maps, tokens, heads], in log2 units
    const float* q_bias;      // as q_scale; added to every score
    const int8_t* k;          // [start + tokens, kv_heads, dim]
    const int8_t* v;          // [start + tokens, kv_heads, dim]
    const float* k_scale;     // [start + tokens, kv_heads], or null: 1
    const float* v_scale;     // [start + tokens, kv_heads], or null: static
    const float* v_step;      // [kv_heads, dim], where v_scale is null
    const float* v_offset;    // [kv_heads, dim], or null: 0; where v_scale is null
    float* out;               // [tokens, heads, dim]
};

// Softmax over some of the keys, for each row of a block.
struct Partial {
    float* max;  // [rows]
    float* sum;  // [rows]
    float* out;  // [rows, padded dim]
};

// Room to work in, for blocks of up to some number of rows, which is a multiple of kStrip. `padded` is dim rounded
// up to a multiple of kPadding.
struct Scratch {
    int16_t* q;         // [rows, padded]
    int16_t* k;         // [kTile, padded]
    int16_t* v;         // [kTile, padded]
    int32_t* products;  // [kStrip, max(kTile, padded)]
    Partial split, total;
};

constexpr int64_t kStrip = 16;
constexpr int64_t kPadding = 16;

// What one instruction set offers. Every function gives the same bits in every table.
//
// The units that fill these tables are compiled with flags of their own. They use no std templates and no inline
// functions: the linker keeps one copy of those, and if it kept theirs, it would run on CPUs that cannot.
struct KernelTable {
    const char* name;
    // sum of a[i]·b[i], exact for n <= kMaxDotLength; no alignment needed, nothing outside [0, n) is read
    int32_t (*dot_u8s8)(const uint8_t* a, const int8_t* b, int64_t n);
    int32_t (*dot_s8s8)(const int8_t* a, const int8_t* b, int64_t n);
    // the attention of the tokens from `first` to before `last`, in the query heads of one key/value head
    void (*attend_rows)(const Attention& a, int64_t kv_head, int64_t first, int64_t last, const Scratch& scratch);
};

extern const KernelTable kPortableKernels;
#ifdef FAQUANT_X86
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512VnniKernels;
#endif

}  // namespace faquant
