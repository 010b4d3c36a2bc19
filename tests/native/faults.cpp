#include "faults.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "attention_faults.h"
#include "linear_faults.h"
#include "right.h"
#include "self_test/self_test.h"

namespace faquant {
namespace {

// Pairs saturate at int16, as in vpmaddubsw.
template <typename A>
int32_t saturating_dot(const A* a, const int8_t* b, int64_t n) {
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i += 2) {
        const int32_t pair = a[i] * b[i] + (i + 1 < n ? a[i + 1] * b[i + 1] : 0);
        sum += std::min(std::max(pair, -32768), 32767);
    }
    return sum;
}

void norm_without_eps(const Norm& norm, const float* x, int64_t rows, int64_t size, float* out) {
    right.rms_norm({norm.weight, norm.bias, 0.0f}, x, rows, size, out);
}

void norm_without_bias(const Norm& norm, const float* x, int64_t rows, int64_t size, float* out) {
    right.rms_norm({norm.weight, nullptr, norm.eps}, x, rows, size, out);
}

void norm_nudged(const Norm& norm, const float* x, int64_t rows, int64_t size, float* out) {
    right.rms_norm(norm, x, rows, size, out);
    nudge(out[rows * size - 1]);
}

void rope_nudged(float* x, const float* cos, const float* sin, int64_t tokens, int64_t heads, int64_t dim) {
    right.rope(x, cos, sin, tokens, heads, dim);
    nudge(x[tokens * heads * dim - 1]);
}

void silu_nudged(const float* gate, const float* up, int64_t count, float* out) {
    right.silu_times(gate, up, count, out);
    nudge(out[count - 1]);
}

void gelu_nudged(const float* gate, const float* up, int64_t count, float* out) {
    right.gelu_times(gate, up, count, out);
    nudge(out[count - 1]);
}

void maxima_without_nan(const Scores& scores, double* maxima) {
    right.block_maxima(scores, maxima);
    if (std::isnan(maxima[0])) {
        maxima[0] = 0.0;
    }
}

double weights_nudged(const Scores& scores, int64_t block, double top, double factor, double* weights) {
    const double sum = right.block_weights(scores, block, top, factor, weights);
    weights[0] = std::nextafter(weights[0], 0.0);
    return sum;
}

double weights_summed_in_order(const Scores& scores, int64_t block, double top, double factor, double* weights) {
    right.block_weights(scores, block, top, factor, weights);
    return std::accumulate(weights, weights + kBlock, 0.0);
}

struct Fault {
    const char* kernel;
    const char* fault;
    void (*put_into)(KernelTable& table);
};

constexpr Fault kFaults[] = {
    {"dot_u8s8", "pairs saturate", [](KernelTable& t) { t.dot_u8s8 = saturating_dot<uint8_t>; }},
    {"dot_s8s8", "pairs saturate", [](KernelTable& t) { t.dot_s8s8 = saturating_dot<int8_t>; }},
    {"append", "no center", [](KernelTable& t) { t.append = append_with<forget_center>; }},
    {"append", "no signs", [](KernelTable& t) { t.append = append_with<forget_signs>; }},
    {"append", "v not rotated", [](KernelTable& t) { t.append = append_with<forget_v_rotation>; }},
    {"append", "no offsets", [](KernelTable& t) { t.append = append_with<forget_offsets>; }},
    {"append", "saturation not counted", [](KernelTable& t) { t.append = append_uncounted; }},
    {"append", "bfloat16 towards zero", [](KernelTable& t) { t.append = append_truncated; }},
    {"attend", "another last bit in bfloat16", [](KernelTable& t) { t.attend = attend_nudged_in_bfloat16; }},
    {"append", "another key in float32", [](KernelTable& t) { t.append = append_scaled_in_float32; }},
    {"attend", "another last bit in float32", [](KernelTable& t) { t.attend = attend_nudged_in_float32; }},
    {"attend", "no equalizer", [](KernelTable& t) { t.attend = attend_with<forget_equalizer>; }},
    {"attend", "no offsets", [](KernelTable& t) { t.attend = attend_with<forget_offsets>; }},
    {"attend", "another sum", [](KernelTable& t) { t.attend = attend_with<forget_quantized_sum>; }},
    {"attend", "no window", [](KernelTable& t) { t.attend = attend_without_window; }},
    {"attend", "saturation not counted", [](KernelTable& t) { t.attend = attend_uncounted; }},
    {"finish", "V stays rotated", [](KernelTable& t) { t.finish = finish_with_v_rotated; }},
    {"finish", "only the first part", [](KernelTable& t) { t.finish = finish_the_first; }},
    {"quantize_inputs", "not rotated",
     [](KernelTable& t) { t.quantize_inputs = quantize_inputs_with<forget_hadamard>; }},
    {"quantize_inputs", "no offset",
     [](KernelTable& t) { t.quantize_inputs = quantize_inputs_with<forget_input_offset>; }},
    {"quantize_inputs", "always 127 steps",
     [](KernelTable& t) { t.quantize_inputs = quantize_inputs_with<forget_steps>; }},
    {"quantize_inputs", "not multiplied",
     [](KernelTable& t) { t.quantize_inputs = quantize_inputs_with<forget_multiplier>; }},
    {"quantize_inputs", "not multiplied with a given scale",
     [](KernelTable& t) { t.quantize_inputs = quantize_inputs_with<forget_static_multiplier>; }},
    {"quantize_inputs", "no low bytes", [](KernelTable& t) { t.quantize_inputs = quantize_inputs_without_low_bytes; }},
    {"quantize_inputs", "no zero points", [](KernelTable& t) { t.quantize_inputs = quantize_inputs_without_zeros; }},
    {"quantize_inputs", "256 of 256 steps", [](KernelTable& t) { t.quantize_inputs = quantize_inputs_beyond_range; }},
    {"linear_panels", "another last bit with zero points",
     [](KernelTable& t) { t.linear_panels = panels_nudged_with_zeros; }},
    {"gated_panels", "no zero points", [](KernelTable& t) { t.gated_panels = gated_panels_without_zeros; }},
    {"linear_panels", "another last bit with wide inputs",
     [](KernelTable& t) { t.linear_panels = panels_nudged_with_wide_inputs; }},
    {"gated_panels", "another last bit with wide inputs",
     [](KernelTable& t) { t.gated_panels = gated_panels_nudged_with_wide_inputs; }},
    {"linear_panels", "no bias", [](KernelTable& t) { t.linear_panels = panels_without_bias; }},
    {"linear_panels", "never adds", [](KernelTable& t) { t.linear_panels = panels_stored; }},
    {"linear_panels", "always adds", [](KernelTable& t) { t.linear_panels = panels_added; }},
    {"linear_panels", "another last bit in row 21", [](KernelTable& t) { t.linear_panels = panels_nudged_in_row_21; }},
    {"gated_panels", "not the last panel", [](KernelTable& t) { t.gated_panels = gated_panels_but_the_last; }},
    {"gated_panels", "gate and up exchanged", [](KernelTable& t) { t.gated_panels = gated_panels_exchanged; }},
    {"float_panels", "no bias", [](KernelTable& t) { t.float_panels = float_panels_without_bias; }},
    {"float_panels", "not fused", [](KernelTable& t) { t.float_panels = float_panels_not_fused; }},
    {"float_panels", "another last bit in bfloat16",
     [](KernelTable& t) { t.float_panels = float_panels_nudged_in_bfloat16; }},
    {"rms_norm", "no eps", [](KernelTable& t) { t.rms_norm = norm_without_eps; }},
    {"rms_norm", "no bias", [](KernelTable& t) { t.rms_norm = norm_without_bias; }},
    {"rms_norm", "another last bit", [](KernelTable& t) { t.rms_norm = norm_nudged; }},
    {"rope", "another last bit", [](KernelTable& t) { t.rope = rope_nudged; }},
    {"silu_times", "another last bit", [](KernelTable& t) { t.silu_times = silu_nudged; }},
    {"gelu_times", "another last bit", [](KernelTable& t) { t.gelu_times = gelu_nudged; }},
    {"block_maxima", "NaN is lost", [](KernelTable& t) { t.block_maxima = maxima_without_nan; }},
    {"block_weights", "another last bit", [](KernelTable& t) { t.block_weights = weights_nudged; }},
    {"block_weights", "another order", [](KernelTable& t) { t.block_weights = weights_summed_in_order; }},
};

}  // namespace

std::vector<FaultReport> reports_of_faults() {
    std::vector<FaultReport> reports;
    for (const Fault& fault : kFaults) {
        KernelTable table = right;
        fault.put_into(table);
        reports.push_back({fault.kernel, fault.fault, first_wrong_kernel(table)});
    }
    return reports;
}

}  // namespace faquant
