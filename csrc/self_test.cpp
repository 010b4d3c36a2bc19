#include "self_test.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <iterator>
#include <vector>

#include "attend.h"

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

// A small attention with scales per token: near a plain loop in float64, and the portable kernel bit for bit.
bool attends(const KernelTable& table) {
    constexpr int64_t kTokens = 7, kHeads = 3, kDim = 20, kStart = 140, kEnd = kStart + kTokens;
    int8_t q[kTokens * kHeads * kDim], k[kEnd * kDim], v[kEnd * kDim];
    float q_scale[kTokens * kHeads], q_bias[kTokens * kHeads] = {}, k_scale[kEnd], v_scale[kEnd];
    float out[kTokens * kHeads * kDim], portable[kTokens * kHeads * kDim];
    Random random;
    std::generate(std::begin(q), std::end(q), [&] { return static_cast<int8_t>(random.next()); });
    std::generate(std::begin(k), std::end(k), [&] { return static_cast<int8_t>(random.next()); });
    std::generate(std::begin(v), std::end(v), [&] { return static_cast<int8_t>(random.next()); });
    std::generate(std::begin(q_scale), std::end(q_scale), [&] { return 1e-7f * static_cast<float>(random.next()); });
    std::generate(std::begin(k_scale), std::end(k_scale), [&] { return static_cast<float>(random.next()); });
    std::generate(std::begin(v_scale), std::end(v_scale), [&] { return static_cast<float>(random.next()) / 32768.0f; });
    Attention a{};
    a.tokens = kTokens;
    a.heads = kHeads;
    a.kv_heads = 1;
    a.dim = kDim;
    a.start = kStart;
    a.window = kEnd;
    a.split = kTile;
    a.p_levels = 32767;
    a.q = q;
    a.q_scale = q_scale;
    a.q_bias = q_bias;
    a.maps = 1;
    a.map_block = kTile;
    a.k = k;
    a.v = v;
    a.k_scale = k_scale;
    a.v_scale = v_scale;
    a.out = portable;
    attend(kPortableKernels, a, 1);
    a.out = out;
    attend(table, a, 1);
    for (int64_t row = 0; row < kTokens * kHeads; ++row) {
        double sum = 0, expected[kDim] = {};
        for (int64_t j = 0; j <= kStart + row / kHeads; ++j) {
            double score = 0;
            for (int64_t c = 0; c < kDim; ++c) {
                score += q[row * kDim + c] * k[j * kDim + c];
            }
            const double p = std::exp2(score * q_scale[row] * k_scale[j]);
            sum += p;
            for (int64_t c = 0; c < kDim; ++c) {
                expected[c] += p * v[j * kDim + c] * v_scale[j];
            }
        }
        for (int64_t c = 0; c < kDim; ++c) {
            const float got = out[row * kDim + c];
            // Written so that NaN fails.
            if (!(std::abs(got - expected[c] / sum) < 1e-4) || got != portable[row * kDim + c]) {
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
    return attends(table) ? nullptr : "attend";
}

bool self_test_notices_saturation() {
    const KernelTable only_unsigned = {"", saturating_dot<uint8_t>, kPortableKernels.dot_s8s8,
                                       kPortableKernels.attend_rows};
    const KernelTable only_signed = {"", kPortableKernels.dot_u8s8, saturating_dot<int8_t>,
                                     kPortableKernels.attend_rows};
    return first_wrong_kernel(only_unsigned) != nullptr && first_wrong_kernel(only_signed) != nullptr;
}

}  // namespace faquant
