#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <vector>

#include "ops/attend.h"
#include "self_test/parts.h"

namespace faquant {

const char* wrong_kernel_in_attention(const KernelTable& table) {
    constexpr int64_t kTokens = 6, kHeads = 3, kDim = 76, kPadded = padded_dim(kDim), kStart = 140;
    constexpr int64_t kEnd = kStart + kTokens, kPage = 2 * kTile;
    Random random;
    const auto q = random.floats(kTokens * kHeads * kDim, 0.01f);
    const auto k = random.floats(kEnd * kDim, 0.05f), v = random.floats(kEnd * kDim, 0.02f);
    std::vector<double> exact;
    for (int64_t row = 0; row < kTokens * kHeads; ++row) {
        double sum = 0, out[kDim] = {};
        const float *query = q.data() + row * kDim, *key = k.data(), *value = v.data();
        for (int64_t j = 0; j <= kStart + row / kHeads; ++j, key += kDim, value += kDim) {
            const double score = std::inner_product(query, query + kDim, key, 0.0);
            const double p = std::exp(score / std::sqrt(static_cast<double>(kDim)));
            sum += p;
            for (int64_t c = 0; c < kDim; ++c) {
                out[c] += p * value[c];
            }
        }
        std::transform(out, out + kDim, std::back_inserter(exact), [sum](double x) { return x / sum; });
    }

    std::vector<int64_t> places(kEnd);
    std::iota(places.begin(), places.end(), 0);
    const int64_t page = 0;
    const Span span = {0, kTokens, kStart, &page};
    // As large as the steps of the values, so that static scales are exact.
    const std::vector<float> k_steps(kDim, 0.05f), v_steps(kDim, 0.02f);
    for (const bool is_static : {false, true}) {
        for (const int32_t p_levels : {127, 32639, 32767}) {
            Scheme scheme{};
            scheme.heads = kHeads;
            scheme.kv_heads = 1;
            scheme.dim = kDim;
            scheme.maps = 1;
            scheme.map_block = kTile;
            scheme.p_levels = p_levels;
            scheme.p_float16 = p_levels == 127;
            if (is_static) {
                scheme.k_scale = k_steps.data();
                scheme.k_by_channel = true;
                scheme.v_scale = v_steps.data();
                scheme.quantized_sum = true;
            }
            const auto run = [&](const KernelTable& kernels) {
                std::vector<uint8_t> k_store(kPage * kPadded), v_store(kPage * kPadded);
                std::vector<uint16_t> k_scale(kPage), v_scale(kPage);
                const Cache cache = {1,
                                     kPage,
                                     k_store.data(),
                                     reinterpret_cast<int8_t*>(v_store.data()),
                                     is_static ? nullptr : k_scale.data(),
                                     is_static ? nullptr : v_scale.data()};
                int64_t saturated[2];
                append(kernels, scheme, cache, k.data(), v.data(), places.data(), places.data(), kEnd, 1, saturated);
                std::vector<float> out(kTokens * kHeads * kDim);
                attend(kernels, {&scheme, &cache, kEnd, kTile, q.data(), out.data()}, &span, 1, 1);
                for (const auto& store : {k_store, v_store}) {
                    out.insert(out.end(), store.begin(), store.end());
                }
                for (const auto& scales : {k_scale, v_scale}) {
                    out.insert(out.end(), scales.begin(), scales.end());
                }
                return out;
            };
            // 8-bit K and V have an error of about 1e-3 here.
            if (const char* kernel = wrong_kernel_in(table, "attention", run, exact, 0.02 + 6.0 / p_levels)) {
                return kernel;
            }
        }
    }

    Scheme sizes{};
    sizes.heads = kHeads;
    sizes.kv_heads = 1;
    sizes.dim = kDim;
    const auto attended = [&](const KernelTable& kernels, const Cache& cache) {
        int64_t saturated[2];
        append(kernels, sizes, cache, k.data(), v.data(), places.data(), places.data(), kEnd, 1, saturated);
        std::vector<float> out(kTokens * kHeads * kDim);
        attend(kernels, {&sizes, &cache, kEnd, kTile, q.data(), out.data()}, &span, 1, 1);
        return out;
    };
    const auto in_bfloat16 = [&](const KernelTable& kernels) {
        constexpr uint16_t kNan = 0x7fc0;
        std::vector<uint16_t> k_store(kPage * kPadded, kNan), v_store(kPage * kPadded, kNan);
        Cache cache{};
        cache.pages = 1;
        cache.page_size = kPage;
        cache.bfloat16_k = k_store.data();
        cache.bfloat16_v = v_store.data();
        std::vector<float> out = attended(kernels, cache);
        for (const auto& store : {k_store, v_store}) {
            out.insert(out.end(), store.begin(), store.end());
        }
        return out;
    };
    if (const char* kernel = wrong_kernel_in(table, "attention in bfloat16", in_bfloat16, exact, 0.01)) {
        return kernel;
    }
    const auto in_float32 = [&](const KernelTable& kernels) {
        constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
        std::vector<float> k_store(kPage * kDim, kNan), v_store(kPage * kDim, kNan);
        Cache cache{};
        cache.pages = 1;
        cache.page_size = kPage;
        cache.float_k = k_store.data();
        cache.float_v = v_store.data();
        std::vector<float> out = attended(kernels, cache);
        for (const auto& store : {k_store, v_store}) {
            out.insert(out.end(), store.begin(), store.begin() + kEnd * kDim);
        }
        return out;
    };
    return wrong_kernel_in(table, "attention in float32", in_float32, exact, 4e-6);
}

}  // namespace faquant
