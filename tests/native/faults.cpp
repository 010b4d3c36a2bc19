#include "faults.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "self_test/self_test.h"

namespace faquant {
namespace {

const KernelTable& right = kPortableKernels;

// Pairs saturate at int16, as vpmaddubsw's do.
template <typename A>
int32_t saturating_dot(const A* a, const int8_t* b, int64_t n) {
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i += 2) {
        const int32_t pair = a[i] * b[i] + (i + 1 < n ? a[i + 1] * b[i + 1] : 0);
        sum += std::min(std::max(pair, -32768), 32767);
    }
    return sum;
}

void forget_center(Scheme& s) {
    s.k_center = nullptr;
}

void forget_equalizer(Scheme& s) {
    s.k_equalizer = nullptr;
}

void forget_signs(Scheme& s) {
    s.rotation_sign = nullptr;
}

void forget_v_rotation(Scheme& s) {
    s.v_rotation_block = 0;
}

void forget_offsets(Scheme& s) {
    s.k_offset = s.v_offset = nullptr;
}

void forget_quantized_sum(Scheme& s) {
    s.quantized_sum = false;
}

template <void (*change)(Scheme&)>
void append_with(const Scheme& scheme, const Cache& cache, const float* k, const float* v, const int64_t* slots,
                 const int64_t* positions, int64_t first, int64_t last, int64_t saturated[2]) {
    Scheme changed = scheme;
    change(changed);
    right.append(changed, cache, k, v, slots, positions, first, last, saturated);
}

void append_uncounted(const Scheme& scheme, const Cache& cache, const float* k, const float* v, const int64_t* slots,
                      const int64_t* positions, int64_t first, int64_t last, int64_t*) {
    int64_t saturated[2] = {};
    right.append(scheme, cache, k, v, slots, positions, first, last, saturated);
}

template <void (*change)(Scheme&)>
int64_t attend_with(const Attention& a, const Span& span, int64_t kv_head, int64_t first, int64_t last, int64_t begin,
                    int64_t end, const Scratch& scratch, const Partial& total) {
    Scheme changed = *a.scheme;
    change(changed);
    Attention b = a;
    b.scheme = &changed;
    return right.attend(b, span, kv_head, first, last, begin, end, scratch, total);
}

int64_t attend_without_window(const Attention& a, const Span& span, int64_t kv_head, int64_t first, int64_t last,
                              int64_t begin, int64_t end, const Scratch& scratch, const Partial& total) {
    Attention b = a;
    b.window = INT32_MAX;
    return right.attend(b, span, kv_head, first, last, begin, end, scratch, total);
}

int64_t attend_uncounted(const Attention& a, const Span& span, int64_t kv_head, int64_t first, int64_t last,
                         int64_t begin, int64_t end, const Scratch& scratch, const Partial& total) {
    right.attend(a, span, kv_head, first, last, begin, end, scratch, total);
    return 0;
}

void finish_with_v_rotated(const Partial* parts, int64_t count, int64_t rows, const Scheme& scheme,
                           const Partial& total) {
    Scheme changed = scheme;
    forget_v_rotation(changed);
    right.finish(parts, count, rows, changed, total);
}

void finish_the_first(const Partial* parts, int64_t, int64_t rows, const Scheme& scheme, const Partial& total) {
    right.finish(parts, 0, rows, scheme, total);
}

void forget_hadamard(Linear& linear) {
    linear.hadamard_block = 0;
}

void forget_input_offset(Linear& linear) {
    static constexpr float kZero = 0.0f;
    linear.input_offset = &kZero;
}

template <void (*change)(Linear&)>
void quantize_inputs_with(const Linear& linear, const float* x, float* scratch, const Rounded& rows) {
    Linear changed = linear;
    change(changed);
    right.quantize_inputs(changed, x, scratch, rows);
}

void panels_without_bias(const Linear& linear, const Rounded& rows, int64_t first, int64_t last, bool add, float* out) {
    Linear changed = linear;
    changed.bias = nullptr;
    right.linear_panels(changed, rows, first, last, add, out);
}

void panels_stored(const Linear& linear, const Rounded& rows, int64_t first, int64_t last, bool, float* out) {
    right.linear_panels(linear, rows, first, last, false, out);
}

void panels_added(const Linear& linear, const Rounded& rows, int64_t first, int64_t last, bool, float* out) {
    right.linear_panels(linear, rows, first, last, true, out);
}

void gated_panels_but_the_last(const Linear& gate, const Rounded& gate_rows, const Linear& up, const Rounded& up_rows,
                               int64_t first, int64_t last, float* out) {
    right.gated_panels(gate, gate_rows, up, up_rows, first, last - (last * kPanel >= up.outputs), out);
}

void gated_panels_exchanged(const Linear& gate, const Rounded& gate_rows, const Linear& up, const Rounded& up_rows,
                            int64_t first, int64_t last, float* out) {
    right.gated_panels(up, up_rows, gate, gate_rows, first, last, out);
}

void float_panels_without_bias(const FloatLinear& linear, const float* x, int64_t rows, int64_t first, int64_t last,
                               float* out) {
    FloatLinear changed = linear;
    changed.bias = nullptr;
    right.float_panels(changed, x, rows, first, last, out);
}

// The first output of each panel, with two roundings for each product.
void float_panels_not_fused(const FloatLinear& linear, const float* x, int64_t rows, int64_t first, int64_t last,
                            float* out) {
    right.float_panels(linear, x, rows, first, last, out);
    if (linear.weight == nullptr) {
        return;
    }
    for (int64_t panel = first; panel < last; ++panel) {
        const int64_t n = panel * kPanel, width = std::min(kPanel, padded_outputs(linear.outputs) - n);
        float sum = 0.0f;
        for (int64_t k = 0; k < linear.inputs; ++k) {
            sum += x[k] * linear.weight[n * linear.inputs + k * width];
        }
        out[n] = sum + linear.bias[n];
    }
}

void float_panels_with_another_column(const FloatLinear& linear, const float* x, int64_t rows, int64_t first,
                                      int64_t last, float* out) {
    FloatLinear changed = linear;
    if (linear.weight == nullptr) {
        changed.bfloat16_weight += 2;
    }
    right.float_panels(changed, x, rows, first, first + 1, out);
    right.float_panels(linear, x, rows, first + 1, last, out);
}

void norm_without_eps(const Norm& norm, const float* x, int64_t rows, int64_t size, float* out) {
    right.rms_norm({norm.weight, norm.bias, 0.0f}, x, rows, size, out);
}

void norm_without_bias(const Norm& norm, const float* x, int64_t rows, int64_t size, float* out) {
    right.rms_norm({norm.weight, nullptr, norm.eps}, x, rows, size, out);
}

void nudge(float& x) {
    x = std::nextafter(x, std::numeric_limits<float>::infinity());
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

// To bfloat16 towards zero.
void append_truncated(const Scheme& scheme, const Cache& cache, const float* k, const float* v, const int64_t* slots,
                      const int64_t* positions, int64_t first, int64_t last, int64_t saturated[2]) {
    right.append(scheme, cache, k, v, slots, positions, first, last, saturated);
    if (cache.bfloat16_k == nullptr) {
        return;
    }
    std::vector<float> k_cut(k, k + last * scheme.kv_heads * scheme.dim);
    for (float& x : k_cut) {
        uint32_t bits;
        std::memcpy(&bits, &x, sizeof bits);
        bits &= 0xffff0000u;
        std::memcpy(&x, &bits, sizeof bits);
    }
    right.append(scheme, cache, k_cut.data(), v, slots, positions, first, last, saturated);
}

int64_t attend_nudged_in_bfloat16(const Attention& a, const Span& span, int64_t kv_head, int64_t first, int64_t last,
                                  int64_t begin, int64_t end, const Scratch& scratch, const Partial& total) {
    const int64_t saturated = right.attend(a, span, kv_head, first, last, begin, end, scratch, total);
    if (a.cache->bfloat16_k != nullptr) {
        nudge(total.out[0]);
    }
    return saturated;
}

struct Fault {
    const char* kernel;
    const char* fault;
    void (*put_into)(KernelTable& table);
};

constexpr Fault kFaults[] = {
    {"dot_u8s8", "pairs saturate", [](KernelTable& t) { t.dot_u8s8 = saturating_dot<uint8_t>; }},
    {"dot_s8s8", "pairs saturate", [](KernelTable& t) { t.dot_s8s8 = saturating_dot<int8_t>; }},
    {"append", "no centre", [](KernelTable& t) { t.append = append_with<forget_center>; }},
    {"append", "no signs", [](KernelTable& t) { t.append = append_with<forget_signs>; }},
    {"append", "v not rotated", [](KernelTable& t) { t.append = append_with<forget_v_rotation>; }},
    {"append", "no offsets", [](KernelTable& t) { t.append = append_with<forget_offsets>; }},
    {"append", "saturation not counted", [](KernelTable& t) { t.append = append_uncounted; }},
    {"append", "bfloat16 towards zero", [](KernelTable& t) { t.append = append_truncated; }},
    {"attend", "another last bit in bfloat16", [](KernelTable& t) { t.attend = attend_nudged_in_bfloat16; }},
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
    {"linear_panels", "no bias", [](KernelTable& t) { t.linear_panels = panels_without_bias; }},
    {"linear_panels", "never adds", [](KernelTable& t) { t.linear_panels = panels_stored; }},
    {"linear_panels", "always adds", [](KernelTable& t) { t.linear_panels = panels_added; }},
    {"gated_panels", "not the last panel", [](KernelTable& t) { t.gated_panels = gated_panels_but_the_last; }},
    {"gated_panels", "gate and up exchanged", [](KernelTable& t) { t.gated_panels = gated_panels_exchanged; }},
    {"float_panels", "no bias", [](KernelTable& t) { t.float_panels = float_panels_without_bias; }},
    {"float_panels", "not fused", [](KernelTable& t) { t.float_panels = float_panels_not_fused; }},
    {"float_panels", "another column in bfloat16",
     [](KernelTable& t) { t.float_panels = float_panels_with_another_column; }},
    {"rms_norm", "no eps", [](KernelTable& t) { t.rms_norm = norm_without_eps; }},
    {"rms_norm", "no bias", [](KernelTable& t) { t.rms_norm = norm_without_bias; }},
    {"rms_norm", "another last bit", [](KernelTable& t) { t.rms_norm = norm_nudged; }},
    {"rope", "another last bit", [](KernelTable& t) { t.rope = rope_nudged; }},
    {"silu_times", "another last bit", [](KernelTable& t) { t.silu_times = silu_nudged; }},
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
