#include <cmath>
#include <cstddef>
#include <numeric>
#include <vector>

#include "self_test/parts.h"

namespace faquant {

const char* wrong_kernel_in_norms(const KernelTable& table) {
    constexpr int64_t kRows = 3, kSize = 37, kAll = kRows * kSize;
    Random random;
    const auto x = random.floats(kAll, 0.02f), weight = random.floats(kSize, 0.01f), bias = random.floats(kSize, 0.01f);
    const Norm plain = {weight.data(), nullptr, 0.1f}, biased = {weight.data(), bias.data(), 0.1f};
    std::vector<double> exact;
    for (const Norm& norm : {plain, biased}) {
        for (const float* row = x.data(); row != x.data() + kAll; row += kSize) {
            const double mean = std::inner_product(row, row + kSize, row, 0.0) / kSize;
            for (int64_t i = 0; i < kSize; ++i) {
                const double normed = row[i] / std::sqrt(mean + norm.eps) * norm.weight[i];
                exact.push_back(norm.bias == nullptr ? normed : normed + norm.bias[i]);
            }
        }
    }
    const auto run = [&](const KernelTable& kernels) {
        std::vector<float> out(2 * kAll);
        kernels.rms_norm(plain, x.data(), kRows, kSize, out.data());
        kernels.rms_norm(biased, x.data(), kRows, kSize, out.data() + kAll);
        return out;
    };
    return wrong_kernel_in(table, "rms_norm", run, exact, 1e-6);
}

const char* wrong_kernel_in_rope(const KernelTable& table) {
    constexpr int64_t kTokens = 3, kHeads = 2, kDim = 20, kHalf = kDim / 2, kAll = kTokens * kHeads * kDim;
    Random random;
    const auto x = random.floats(kAll, 0.02f);
    const auto cos = random.floats(kTokens * kDim, 0x1p-7f), sin = random.floats(kTokens * kDim, 0x1p-7f);
    std::vector<double> exact;
    for (int64_t i = 0; i < kAll; ++i) {
        const float* value = x.data() + i;
        const int64_t channel = i % kDim, at = i / (kHeads * kDim) * kDim + channel;
        const double other = channel < kHalf ? -value[kHalf] : value[-kHalf];
        exact.push_back(static_cast<double>(*value) * cos.data()[at] + other * sin.data()[at]);
    }
    const auto run = [&](const KernelTable& kernels) {
        std::vector<float> out = x;
        kernels.rope(out.data(), cos.data(), sin.data(), kTokens, kHeads, kDim);
        return out;
    };
    return wrong_kernel_in(table, "rope", run, exact, 1e-6);
}

namespace {

using Gated = void (*)(const float* gate, const float* up, int64_t count, float* out);

const char* wrong_gated(const KernelTable& table, const char* name, Gated KernelTable::* kernel,
                        double (*activation)(double)) {
    Random random;
    std::vector<float> gate = random.floats(256, 1.0f);
    for (const float value : {0.0f, -0.0f, 1e-30f, -1e-30f, 3e38f, -3e38f, 88.5f, -88.5f, 0.3f}) {
        gate.push_back(value);
    }
    const auto count = static_cast<int64_t>(gate.size());
    const auto up = random.floats(count, 0x1p-7f);
    std::vector<double> exact;
    for (size_t i = 0; i < gate.size(); ++i) {
        exact.push_back(activation(gate[i]) * up[i]);
    }
    const auto run = [&](const KernelTable& kernels) {
        std::vector<float> out(gate.size());
        (kernels.*kernel)(gate.data(), up.data(), count, out.data());
        return out;
    };
    return wrong_kernel_in(table, name, run, exact, 1e-6);
}

double exact_gelu(double x) {
    return x / 2 * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

}  // namespace

const char* wrong_kernel_in_silu(const KernelTable& table) {
    return wrong_gated(table, "silu_times", &KernelTable::silu_times, exact_silu);
}

const char* wrong_kernel_in_gelu(const KernelTable& table) {
    return wrong_gated(table, "gelu_times", &KernelTable::gelu_times, exact_gelu);
}

double exact_silu(double x) {
    return x / (1 + std::exp(-x));
}

}  // namespace faquant
