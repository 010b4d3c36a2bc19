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

// What a table's kernels make of some work; what is no float is taken into one.
using Run = std::function<std::vector<float>(const KernelTable&)>;

// The kernel of `table` that makes `run` give other bits than the portable kernels do; or `name`, where it is none
// alone or where the portable ones' first results are further from `exact` than the tolerance times (1 + |exact|),
// which a fault of the compiler would be in every table; or nullptr.
const char* wrong_kernel_in(const KernelTable& table, const char* name, const Run& run,
                            const std::vector<double>& exact, double tolerance);

// x / (1 + e^-x)
double exact_silu(double x);

// A linear of random weights and the memory that it points to. Scales are `unit`, a half of it, a quarter and an
// eighth; the bias is in units.
struct RandomLinear {
    std::vector<int8_t> weight, packed;  // [outputs, inputs], and as kernels take it
    std::vector<int32_t> excess, quant_bias;
    std::vector<float> scale, bias, input;
    Linear linear{};

    RandomLinear(Random& random, int64_t inputs, int64_t outputs, float unit);
    RandomLinear(const RandomLinear&) = delete;

    // Round its inputs with a given scale.
    RandomLinear& round_statically(float scale_of_inputs, float offset);
};

// The first wrong kernel, or nullptr:
// dot products on extreme and random bytes,
const char* wrong_kernel_in_dots(const KernelTable& table);
// what stands between the products,
const char* wrong_kernel_in_norms(const KernelTable& table);
const char* wrong_kernel_in_rope(const KernelTable& table);
const char* wrong_kernel_in_silu(const KernelTable& table);
// the passes over a vocabulary,
const char* wrong_kernel_in_maxima(const KernelTable& table);
const char* wrong_kernel_in_weights(const KernelTable& table);
// linears on numbers of which every sum and every rounding is exact,
const char* wrong_kernel_in_linears(const KernelTable& table);
// two of them with SwiGLU,
const char* wrong_kernel_in_gated_linears(const KernelTable& table);
// linears of float32 and of bfloat16,
const char* wrong_kernel_in_float_linears(const KernelTable& table);
// a small attention through a page, with scales per token, with static ones, in bfloat16 and in float32,
const char* wrong_kernel_in_attention(const KernelTable& table);
// a few small decoder layers of all kinds.
const char* wrong_kernel_in_layers(const KernelTable& table);

}  // namespace faquant
