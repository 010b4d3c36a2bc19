#include "self_test.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <numeric>
#include <vector>

#include "attend.h"
#include "linear.h"

namespace faquant {
namespace {

constexpr int64_t kLengths[] = {0, 1, 63, 64, 65, 127, 128, 129, 1000};
constexpr int64_t kLongest = 1000;
// Operands start here, so that they are unaligned, and end this far before the end of their buffer.
constexpr int64_t kMargin = 65;
constexpr uint8_t kPoison = 0x7f;

struct Random {
    uint32_t state = 0x9e3779b9u;
    uint8_t next() {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        return static_cast<uint8_t>(state >> 24);
    }
};

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

const char* first_wrong_kernel_on(const KernelTable& table, const std::vector<uint8_t>& a,
                                  const std::vector<uint8_t>& b, int64_t n) {
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

template <typename A>
int32_t saturating_dot(const A* a, const int8_t* b, int64_t n) {
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i += 2) {
        const int32_t pair = a[i] * b[i] + (i + 1 < n ? a[i + 1] * b[i + 1] : 0);
        sum += std::min(std::max(pair, -32768), 32767);
    }
    return sum;
}

// A small attention through a page, with scales per token or static ones: near a plain loop in float64 over what was
// stored, and the portable kernel bit for bit.
bool attends(const KernelTable& table, bool is_static, int32_t p_levels) {
    constexpr int64_t kTokens = 7, kHeads = 3, kDim = 20, kPadded = padded_dim(kDim), kStart = 140;
    constexpr int64_t kEnd = kStart + kTokens, kPage = 2 * kTile;
    Random random;
    const auto fill = [&](std::vector<float>& values, float unit) {
        std::generate(values.begin(), values.end(), [&] { return unit * static_cast<float>(random.next() - 128); });
    };
    std::vector<float> q(kTokens * kHeads * kDim), k(kEnd * kDim), v(kEnd * kDim);
    fill(q, 0.01f);
    fill(k, 0.05f);
    fill(v, 0.02f);
    std::vector<int64_t> places(kEnd);
    std::iota(places.begin(), places.end(), 0);
    Scheme scheme{};
    scheme.heads = kHeads;
    scheme.kv_heads = 1;
    scheme.dim = kDim;
    scheme.maps = 1;
    scheme.map_block = kTile;
    scheme.p_levels = p_levels;
    // As large as the values' own steps, so that static scales round nothing.
    const std::vector<float> k_steps(kDim, 0.05f), v_steps(kDim, 0.02f);
    if (is_static) {
        scheme.k_scale = k_steps.data();
        scheme.k_by_channel = true;
        scheme.v_scale = v_steps.data();
        scheme.quantized_sum = true;
    }
    const int64_t page = 0;
    const Span span = {0, kTokens, kStart, &page};
    std::vector<float> outs[2];
    std::vector<uint8_t> k_store(kPage * kPadded), v_store(kPage * kPadded);
    std::vector<uint16_t> k_scale(kPage), v_scale(kPage);
    const KernelTable* tables[] = {&kPortableKernels, &table};
    for (int i = 0; i < 2; ++i) {
        outs[i].resize(kTokens * kHeads * kDim);
        const Cache cache = {1,
                             kPage,
                             k_store.data(),
                             reinterpret_cast<int8_t*>(v_store.data()),
                             is_static ? nullptr : k_scale.data(),
                             is_static ? nullptr : v_scale.data()};
        int64_t saturated[2];
        append(*tables[i], scheme, cache, k.data(), v.data(), places.data(), places.data(), kEnd, 1, saturated);
        const Attention attention = {&scheme, &cache, kEnd, kTile, q.data(), outs[i].data()};
        attend(*tables[i], attention, &span, 1, 1);
    }
    const double tolerance = 0.02 + 6.0 / p_levels;
    for (int64_t row = 0; row < kTokens * kHeads; ++row) {
        double sum = 0, expected[kDim] = {};
        for (int64_t j = 0; j <= kStart + row / kHeads; ++j) {
            double score = 0;
            for (int64_t c = 0; c < kDim; ++c) {
                score += static_cast<double>(q[row * kDim + c]) * k[j * kDim + c];
            }
            const double p = std::exp(score / std::sqrt(static_cast<double>(kDim)));
            sum += p;
            for (int64_t c = 0; c < kDim; ++c) {
                expected[c] += p * v[j * kDim + c];
            }
        }
        for (int64_t c = 0; c < kDim; ++c) {
            const float got = outs[1][row * kDim + c];
            // K and V in eight bits lose about 1e-3 here. Written so that NaN fails.
            if (!(std::abs(got - expected[c] / sum) < tolerance) || got != outs[0][row * kDim + c]) {
                return false;
            }
        }
    }
    return true;
}

// A linear on whole numbers, of which the greatest is 127, so that nothing is rounded: every sum is exact, extreme ones
// too.
bool multiplies(const KernelTable& table) {
    constexpr int64_t kRows = 5, kInputs = 999, kOutputs = 70;
    Random random;
    std::vector<int8_t> weight(kOutputs * kInputs);
    std::generate(weight.begin(), weight.end(), [&] { return static_cast<int8_t>(random.next()); });
    std::fill_n(weight.begin(), kInputs, int8_t{-128});
    std::vector<float> x(kRows * kInputs), scale(kOutputs, 1.0f), out(kRows * kOutputs);
    std::generate(x.begin(), x.end(), [&] { return static_cast<float>(random.next() % 255) - 127.0f; });
    std::fill_n(x.begin(), kInputs, 127.0f);
    std::fill_n(x.begin() + kInputs, kInputs, -127.0f);
    for (int64_t row = 0; row < kRows; ++row) {
        x[static_cast<size_t>(row * kInputs)] = 127.0f;
    }
    std::vector<int8_t> packed(padded_inputs(kInputs) * padded_outputs(kOutputs));
    std::vector<int32_t> excess(kOutputs);
    pack_weight(weight.data(), kOutputs, kInputs, packed.data(), excess.data());
    Linear linear{};
    linear.inputs = kInputs;
    linear.outputs = kOutputs;
    linear.weight = packed.data();
    linear.excess = excess.data();
    linear.scale = scale.data();
    const Product product = {&linear, out.data(), false};
    apply(table, {x.data(), kRows, {}}, &product, 1, 1);
    for (int64_t row = 0; row < kRows; ++row) {
        for (int64_t n = 0; n < kOutputs; ++n) {
            int64_t sum = 0;
            for (int64_t i = 0; i < kInputs; ++i) {
                sum += static_cast<int64_t>(x[static_cast<size_t>(row * kInputs + i)]) * weight[n * kInputs + i];
            }
            if (out[row * kOutputs + n] != static_cast<float>(sum)) {
                return false;
            }
        }
    }
    return true;
}

}  // namespace

const char* first_wrong_kernel(const KernelTable& table) {
    std::vector<uint8_t> a(kLongest + 2 * kMargin), b(kLongest + 2 * kMargin);
    Random random;
    for (const int64_t n : kLengths) {
        // 0x80 is 128 or −128, 0x7f is 127, 0xff is 255 or −1.
        for (const uint8_t x : {0x00, 0x7f, 0x80, 0xff}) {
            for (const uint8_t even : {0x7f, 0x80, 0x81, 0xff}) {
                for (const uint8_t odd : {0x7f, 0x80}) {
                    fill(a, n, x, x);
                    fill(b, n, even, odd);
                    if (const char* name = first_wrong_kernel_on(table, a, b, n)) {
                        return name;
                    }
                }
            }
        }
        for (int round = 0; round < 4; ++round) {
            fill(a, n, random);
            fill(b, n, random);
            if (const char* name = first_wrong_kernel_on(table, a, b, n)) {
                return name;
            }
        }
    }
    if (!multiplies(table)) {
        return "linear";
    }
    for (const int32_t p_levels : {127, 255, 32767}) {
        if (!attends(table, false, p_levels) || !attends(table, true, p_levels)) {
            return "attend";
        }
    }
    return nullptr;
}

bool self_test_notices_saturation() {
    KernelTable only_unsigned = kPortableKernels, only_signed = kPortableKernels;
    only_unsigned.dot_u8s8 = saturating_dot<uint8_t>;
    only_signed.dot_s8s8 = saturating_dot<int8_t>;
    return first_wrong_kernel(only_unsigned) != nullptr && first_wrong_kernel(only_signed) != nullptr;
}

}  // namespace faquant
