#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "isa/kernels.h"

namespace faquant {

struct Random {
    uint32_t state = 0x9e3779b9u;

    uint8_t next() {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        return static_cast<uint8_t>(state >> 24);
    }

    // Whole numbers in [-128, 127] times `unit`, plus `middle`.
    std::vector<float> floats(int64_t count, float unit, float middle = 0.0f) {
        std::vector<float> values(static_cast<size_t>(count));
        for (float& value : values) {
            value = middle + unit * static_cast<float>(next() - 128);
        }
        return values;
    }
};

// The results of a table's kernels for some work, all converted to float.
using Run = std::function<std::vector<float>(const KernelTable&)>;

// Returns the kernel of `table` that makes the bits of `run` differ from the portable kernels'; or `name`, if no single
// kernel does, or if the portable kernels' first results differ from `exact` by more than the tolerance times (1 +
// |exact|), as a compiler bug could cause in every table; or nullptr.
const char* wrong_kernel_in(const KernelTable& table, const char* name, const Run& run,
                            const std::vector<double>& exact, double tolerance);

// x / (1 + e^-x)
double exact_silu(double x);

// A linear with random weights and the memory that it points to. Scales are `unit`, and a half, a quarter and an eighth
// of it; the bias is in units.
struct RandomLinear {
    std::vector<int8_t> weight, packed;  // [outputs, inputs], and packed for the kernels
    std::vector<int32_t> totals, quant_bias;
    std::vector<float> scale, bias, input, multiplier;
    Linear linear{};

    RandomLinear(Random& random, int64_t inputs, int64_t outputs, float unit);
    RandomLinear(const RandomLinear&) = delete;

    // Multiply its inputs by powers of two of either sign, so that products are exact.
    RandomLinear& multiply_inputs(Random& random);
    // Quantize its inputs with a given scale.
    RandomLinear& round_statically(float scale_of_inputs, float offset);
};

// Each returns the first wrong kernel, or nullptr, of:
// dot products on extreme and random bytes,
const char* wrong_kernel_in_dots(const KernelTable& table);
// the operations between the products,
const char* wrong_kernel_in_norms(const KernelTable& table);
const char* wrong_kernel_in_rope(const KernelTable& table);
const char* wrong_kernel_in_silu(const KernelTable& table);
const char* wrong_kernel_in_gelu(const KernelTable& table);
// the passes over a vocabulary,
const char* wrong_kernel_in_maxima(const KernelTable& table);
const char* wrong_kernel_in_weights(const KernelTable& table);
// linears on numbers for which every sum and every rounding is exact,
const char* wrong_kernel_in_linears(const KernelTable& table);
// two of them with SwiGLU,
const char* wrong_kernel_in_gated_linears(const KernelTable& table);
// linears with float32 and bfloat16 weights,
const char* wrong_kernel_in_float_linears(const KernelTable& table);
// a small attention through a page, with scales per token, with static ones, in bfloat16 and in float32,
const char* wrong_kernel_in_attention(const KernelTable& table);
// a few small decoder layers of all kinds.
const char* wrong_kernel_in_layers(const KernelTable& table);

}  // namespace faquant
