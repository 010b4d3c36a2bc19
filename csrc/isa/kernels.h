#pragma once

#include <cstdint>

#include "isa/attention.h"
#include "isa/cpu_feature.h"
#include "isa/linears.h"

namespace faquant {

// The longest dot product of full-range 8-bit values that cannot overflow int32.
constexpr int64_t kMaxDotLength = 65536;
// The longest sum of products of two bytes that is exact in float32.
constexpr int64_t kMaxHeadDim = 1024;

constexpr int64_t kCacheLine = 64;
// Keys that share one scale of P. Tiles start at multiples of it, and pages hold whole tiles.
constexpr int64_t kTile = 128;
// Rows of attention that are processed together for a tile. Linears are cut into jobs of multiples of it.
constexpr int64_t kStrip = 16;
// Scores per block, whose sum and maximum are computed together.
constexpr int64_t kBlock = 64;

// A packed matrix [rows, columns] is cut into panels of kPanel columns, the last one narrower. A panel is contiguous
// and a row-major matrix of words; a word has four rows of int8, two of bfloat16 or one of float32 of one column. For
// int8, with row:column:
//
//      panel 0                                                panel 1
//     +-----------------+-----------------+-- --+            +-------------------+-- --+
//     | 0:0 1:0 2:0 3:0 | 0:1 1:1 2:1 3:1 | ... | to 3:63    | 0:64 ... 3:64     | ... | to 3:127
//     +-----------------+-----------------+-- --+            +-------------------+-- --+
//     | 4:0 5:0 6:0 7:0 | 4:1 5:1 6:1 7:1 | ... | to 7:63    | 4:64 ... 7:64     | ... | to 7:127
//     +-----------------+-----------------+-- --+            +-------------------+-- --+
//     | ...               one word: 4 bytes                  | ...
//
// Memory follows the lines of panel 0, then those of panel 1. A multiplication reads it sequentially: it multiplies
// each line by one word of a row of the other matrix, broadcast to all lanes, and each lane sums up a column's
// products.
constexpr int64_t kPanel = 64;
// The channels of a head and the outputs of a linear are padded to a multiple of this.
constexpr int64_t kPadding = 16;

static constexpr int64_t padded_dim(int64_t dim) {
    return (dim + kPadding - 1) / kPadding * kPadding;
}

static constexpr int64_t padded_inputs(int64_t inputs) {
    return (inputs + 3) / 4 * 4;
}

static constexpr int64_t padded_outputs(int64_t outputs) {
    return (outputs + kPadding - 1) / kPadding * kPadding;
}

// The kernels of one instruction set. Every function returns the same bits in every table.
// The units that fill these tables are compiled with different flags. They use no std templates and no inline
// functions: the linker keeps one copy of each, and if it kept theirs, CPUs without the instructions would run it.
// Shared code is in generic/*-inl.h, which each unit includes in its anonymous namespace, with its flags.
struct KernelTable {
    const char* name;
    uint32_t features;  // required CPU features, bits of CpuFeature
    // sum of a[i]·b[i], exact for n <= kMaxDotLength; no alignment needed, nothing outside [0, n) is read
    int32_t (*dot_u8s8)(const uint8_t* a, const int8_t* b, int64_t n);
    int32_t (*dot_s8s8)(const int8_t* a, const int8_t* b, int64_t n);
    // Quantize and store the tokens [first, last) of k and v [tokens, kv_heads, dim]; `saturated` counts values beyond
    // k's and v's static scales.
    void (*append)(const Scheme& scheme, const Cache& cache, const float* k, const float* v, const int64_t* slots,
                   const int64_t* positions, int64_t first, int64_t last, int64_t saturated[2]);
    // The softmax of the tokens [first, last) of a span over the keys [begin, end), both multiples of the split except
    // at the sequence's end, in the query heads of one key/value head; the splits are merged into `total`. Returns how
    // many values of q were beyond its static scale.
    int64_t (*attend)(const Attention& a, const Span& span, int64_t kv_head, int64_t first, int64_t last, int64_t begin,
                      int64_t end, const Scratch& scratch, const Partial& total);
    // Quantize rows x [count, inputs] for the linear; `scratch` holds a row.
    void (*quantize_inputs)(const Linear& linear, const float* x, float* scratch, const Rounded& rows);
    // Apply some panels of the weight to all rows, and store the result in out [rows, outputs] or add it.
    void (*linear_panels)(const Linear& linear, const Rounded& rows, int64_t first, int64_t last, bool add, float* out);
    // The same for silu(gate) · up, each with its own rounding of the same rows.
    void (*gated_panels)(const Linear& gate, const Rounded& gate_rows, const Linear& up, const Rounded& up_rows,
                         int64_t first, int64_t last, float* out);
    // Apply some panels of a float weight to all rows x [rows, inputs], and store the result in out [rows, outputs].
    void (*float_panels)(const FloatLinear& linear, const float* x, int64_t rows, int64_t first, int64_t last,
                         float* out);
    // The operations between the products: generic/elementwise_rows-inl.h.
    void (*rms_norm)(const Norm& norm, const float* x, int64_t rows, int64_t size, float* out);
    void (*rope)(float* x, const float* cos, const float* sin, int64_t tokens, int64_t heads, int64_t dim);
    void (*silu_times)(const float* gate, const float* up, int64_t count, float* out);
    void (*gelu_times)(const float* gate, const float* up, int64_t count, float* out);
    // Merge `count` more partials of `rows` rows into `total`, in order, divide by the sums and rotate V back.
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
#ifdef FAQUANT_AMX
extern const KernelTable kAmxKernels;
#endif
#ifdef FAQUANT_AVXVNNI
extern const KernelTable kAvxVnniKernels;
extern const KernelTable kAvxVnniEvexKernels;
#endif
#ifdef FAQUANT_NEON
extern const KernelTable kNeonDotKernels;
extern const KernelTable kNeonI8mmKernels;
#endif

}  // namespace faquant
