#include "self_test/self_test.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <vector>

#include "self_test/parts.h"

namespace faquant {
namespace {

constexpr int64_t kLengths[] = {0, 1, 63, 64, 65, 127, 128, 129, 1000};
constexpr int64_t kLongest = 1000;
// Operands start here, so that they are unaligned, and end this far before the end of their buffer.
constexpr int64_t kMargin = 65;
constexpr uint8_t kPoison = 0x7f;
// What the first operand is filled with, and the second. 0x80 is 128 or −128, 0x7f is 127, 0xff is 255 or −1.
constexpr uint8_t kFirst[] = {0x00, 0x7f, 0x80, 0xff}, kEven[] = {0x7f, 0x80, 0x81, 0xff}, kOdd[] = {0x7f, 0x80};

template <typename A>
bool agrees(int32_t (*dot)(const A*, const int8_t*, int64_t), const std::vector<uint8_t>& a,
            const std::vector<uint8_t>& b, int64_t n) {
    const A* x = reinterpret_cast<const A*>(a.data() + kMargin);
    const int8_t* y = reinterpret_cast<const int8_t*>(b.data() + kMargin);
    int64_t sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        sum += static_cast<int64_t>(x[i]) * y[i];
    }
    return dot(x, y, n) == sum;
}

const char* first_wrong_dot(const KernelTable& table, const std::vector<uint8_t>& a, const std::vector<uint8_t>& b,
                            int64_t n) {
    if (!agrees(table.dot_u8s8, a, b, n)) {
        return "dot_u8s8";
    }
    if (!agrees(table.dot_s8s8, a, b, n)) {
        return "dot_s8s8";
    }
    return nullptr;
}

void fill(std::vector<uint8_t>& buffer, int64_t n, uint8_t even, uint8_t odd) {
    std::fill(buffer.begin(), buffer.end(), kPoison);
    for (int64_t i = 0; i < n; ++i) {
        buffer[static_cast<size_t>(kMargin + i)] = i % 2 == 0 ? even : odd;
    }
}

void fill(std::vector<uint8_t>& buffer, int64_t n, Random& random) {
    std::fill(buffer.begin(), buffer.end(), kPoison);
    for (int64_t i = 0; i < n; ++i) {
        buffer[static_cast<size_t>(kMargin + i)] = random.next();
    }
}

const char* wrong_kernel_in_dots(const KernelTable& table) {
    std::vector<uint8_t> a(kLongest + 2 * kMargin), b(kLongest + 2 * kMargin);
    Random random;
    for (const int64_t n : kLengths) {
        for (const uint8_t x : kFirst) {
            for (const uint8_t even : kEven) {
                for (const uint8_t odd : kOdd) {
                    fill(a, n, x, x);
                    fill(b, n, even, odd);
                    if (const char* name = first_wrong_dot(table, a, b, n)) {
                        return name;
                    }
                }
            }
        }
        for (int round = 0; round < 4; ++round) {
            fill(a, n, random);
            fill(b, n, random);
            if (const char* name = first_wrong_dot(table, a, b, n)) {
                return name;
            }
        }
    }
    return nullptr;
}

const char* wrong_norm(const KernelTable& table) {
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

const char* wrong_rope(const KernelTable& table) {
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

const char* wrong_silu(const KernelTable& table) {
    Random random;
    std::vector<float> gate = random.floats(256, 1.0f);
    for (const float value : {0.0f, -0.0f, 1e-30f, -1e-30f, 3e38f, -3e38f, 88.5f, -88.5f, 0.3f}) {
        gate.push_back(value);
    }
    const auto count = static_cast<int64_t>(gate.size());
    const auto up = random.floats(count, 0x1p-7f);
    std::vector<double> exact;
    for (size_t i = 0; i < gate.size(); ++i) {
        exact.push_back(exact_silu(gate[i]) * up[i]);
    }
    const auto run = [&](const KernelTable& kernels) {
        std::vector<float> out(gate.size());
        kernels.silu_times(gate.data(), up.data(), count, out.data());
        return out;
    };
    return wrong_kernel_in(table, "silu_times", run, exact, 1e-6);
}

// Three blocks, the last one short, of scores up to 0 and of some that no weight can hold.
std::vector<float> scores_of_blocks(float unit) {
    Random random;
    std::vector<float> scores = random.floats(2 * kBlock + 9, unit, -127 * unit);
    scores[0] = 0.0f;
    scores[kBlock] = -1e30f;
    return scores;
}

const char* wrong_maxima(const KernelTable& table) {
    std::vector<float> scores = scores_of_blocks(0.1f);
    const std::vector<double> wide(scores.begin(), scores.end());
    const auto count = static_cast<int64_t>(scores.size());
    std::vector<double> exact;
    for (auto block = wide.begin(); block < wide.end(); block += std::min<std::ptrdiff_t>(kBlock, wide.end() - block)) {
        exact.push_back(*std::max_element(block, block + std::min<std::ptrdiff_t>(kBlock, wide.end() - block)));
    }
    std::vector<float> with_nan = scores;
    with_nan[3] = std::numeric_limits<float>::quiet_NaN();
    const auto run = [&](const KernelTable& kernels) {
        std::vector<float> out;
        for (const Scores& row : {Scores{count, scores.data(), nullptr},
                                  {count, nullptr, wide.data()},
                                  {count, with_nan.data(), nullptr}}) {
            double maxima[3];
            kernels.block_maxima(row, maxima);
            out.insert(out.end(), maxima, maxima + 3);
        }
        return out;
    };
    return wrong_kernel_in(table, "block_maxima", run, exact, 0.0);
}

const char* wrong_weights(const KernelTable& table) {
    const std::vector<float> scores = scores_of_blocks(6.0f);
    const std::vector<double> wide(scores.begin(), scores.end());
    const auto count = static_cast<int64_t>(scores.size());
    std::vector<double> exact;
    for (const float score : scores) {
        exact.push_back(std::exp2(0.7 * score));
    }
    const auto run = [&](const KernelTable& kernels) {
        std::vector<float> out, rest;
        for (const Scores& row : {Scores{count, scores.data(), nullptr}, {count, nullptr, wide.data()}}) {
            double weights[3 * kBlock + 3];
            for (int64_t block = 0; block < 3; ++block) {
                weights[3 * kBlock + block] = kernels.block_weights(row, block, 0.0, 0.7, weights + block * kBlock);
            }
            for (const double weight : weights) {
                out.push_back(static_cast<float>(weight));
                rest.push_back(static_cast<float>(weight - static_cast<double>(out.back())));
            }
        }
        out.insert(out.end(), rest.begin(), rest.end());
        return out;
    };
    return wrong_kernel_in(table, "block_weights", run, exact, 1e-7);
}

// A kernel that `to` takes over from another table.
struct Kernel {
    const char* name;
    void (*take)(KernelTable& to, const KernelTable& from);
};

template <auto kernel>
void take(KernelTable& to, const KernelTable& from) {
    to.*kernel = from.*kernel;
}

constexpr Kernel kKernels[] = {{"append", take<&KernelTable::append>},
                               {"attend", take<&KernelTable::attend>},
                               {"quantize_inputs", take<&KernelTable::quantize_inputs>},
                               {"linear_panels", take<&KernelTable::linear_panels>},
                               {"gated_panels", take<&KernelTable::gated_panels>},
                               {"rms_norm", take<&KernelTable::rms_norm>},
                               {"rope", take<&KernelTable::rope>},
                               {"silu_times", take<&KernelTable::silu_times>},
                               {"finish", take<&KernelTable::finish>},
                               {"block_maxima", take<&KernelTable::block_maxima>},
                               {"block_weights", take<&KernelTable::block_weights>}};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

const char* wrong_kernel_in(const KernelTable& table, const char* name, const Run& run,
                            const std::vector<double>& exact, double tolerance) {
    const std::vector<float> expected = run(kPortableKernels);
    for (size_t i = 0; i < exact.size(); ++i) {
        // Written so that NaN fails.
        if (!(std::abs(expected[i] - exact[i]) <= tolerance * (1 + std::abs(exact[i])))) {
            return name;
        }
    }
    if (same_bits(run(table), expected)) {
        return nullptr;
    }
    for (const Kernel& kernel : kKernels) {
        KernelTable with_one = kPortableKernels;
        kernel.take(with_one, table);
        if (!same_bits(run(with_one), expected)) {
            return kernel.name;
        }
    }
    return name;
}

double exact_silu(double x) {
    return x / (1 + std::exp(-x));
}

const char* first_wrong_kernel(const KernelTable& table) {
    for (const auto& find :
         {wrong_kernel_in_dots, wrong_norm, wrong_rope, wrong_silu, wrong_maxima, wrong_weights,
          wrong_kernel_in_linears, wrong_kernel_in_gated_linears, wrong_kernel_in_attention, wrong_kernel_in_layers}) {
        if (const char* kernel = find(table)) {
            return kernel;
        }
    }
    return nullptr;
}

}  // namespace faquant
