#include "ops/decoder_layer.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>

#include "ops/attend.h"
#include "ops/linear.h"
#include "runtime/pool.h"

namespace faquant {
namespace {

constexpr int64_t kTokensPerJob = 8;

// Buffers for the intermediate results of a layer, large enough for the largest of several layers.
struct Activations {
    std::unique_ptr<float[]> q, k, v, attention, inner;

    Activations(const CachedLayer* layers, int64_t count, int64_t tokens) {
        int64_t q_size = 0, kv_size = 0, inner_size = 0;
        for (int64_t i = 0; i < count; ++i) {
            q_size = std::max(q_size, layers[i].layer.q_proj->outputs);
            kv_size = std::max(kv_size, layers[i].layer.k_proj->outputs);
            inner_size = std::max(inner_size, layers[i].layer.up_proj->outputs);
        }
        const auto floats = [tokens](int64_t size) { return new float[static_cast<size_t>(tokens * size)]; };
        q.reset(floats(q_size));
        k.reset(floats(kv_size));
        v.reset(floats(kv_size));
        attention.reset(floats(q_size));
        inner.reset(floats(inner_size));
    }
};

// Norms of heads and RoPE; appends k and v to the cache. Returns how many of k and v were beyond their static scales.
Saturated rope_and_append(const KernelTable& table, const CachedLayer& cached, const Batch& batch, const Activations& a,
                          int64_t threads) {
    const Scheme& s = *cached.scheme;
    const Norm &q_norm = cached.layer.q_norm, &k_norm = cached.layer.k_norm;
    std::atomic<int64_t> k_beyond{0}, v_beyond{0};
    parallel((batch.tokens + kTokensPerJob - 1) / kTokensPerJob, threads, [&](int64_t job) {
        const int64_t first = job * kTokensPerJob, tokens = std::min(kTokensPerJob, batch.tokens - first);
        const int64_t row = cached.layer.rope * batch.tokens + first;
        const float *cos = batch.cos + row * s.dim, *sin = batch.sin + row * s.dim;
        float *q = a.q.get() + first * s.heads * s.dim, *k = a.k.get() + first * s.kv_heads * s.dim;
        if (q_norm.weight != nullptr) {
            table.rms_norm(q_norm, q, tokens * s.heads, s.dim, q);
            table.rms_norm(k_norm, k, tokens * s.kv_heads, s.dim, k);
        }
        table.rope(q, cos, sin, tokens, s.heads, s.dim);
        table.rope(k, cos, sin, tokens, s.kv_heads, s.dim);
        int64_t counts[2] = {};
        table.append(s, *cached.cache, a.k.get(), a.v.get(), batch.slots, batch.positions, first, first + tokens,
                     counts);
        k_beyond += counts[0];
        v_beyond += counts[1];
    });
    return {0, k_beyond, v_beyond};
}

}  // namespace

void run_layers(const KernelTable& table, const CachedLayer* layers, int64_t count, const Batch& batch, float* x,
                int64_t threads, Saturated* saturated) {
    const Activations a(layers, count, batch.tokens);
    const Norm none{};
    for (int64_t i = 0; i < count; ++i) {
        const DecoderLayer& layer = layers[i].layer;
        const Product qkv[] = {
            {layer.q_proj, a.q.get(), false}, {layer.k_proj, a.k.get(), false}, {layer.v_proj, a.v.get(), false}};
        apply(table, {x, batch.tokens, layer.input_layernorm}, qkv, 3, threads);
        saturated[i] = rope_and_append(table, layers[i], batch, a, threads);
        const Attention attention = {layers[i].scheme, layers[i].cache, layers[i].window,
                                     batch.split,      a.q.get(),       a.attention.get()};
        saturated[i].q = attend(table, attention, batch.spans, batch.count, threads);
        const Product o = {layer.o_proj, x, true};
        apply(table, {a.attention.get(), batch.tokens, none}, &o, 1, threads);
        apply_gated(table, {x, batch.tokens, layer.post_attention_layernorm}, *layer.gate_proj, *layer.up_proj,
                    a.inner.get(), threads);
        const Product down = {layer.down_proj, x, true};
        apply(table, {a.inner.get(), batch.tokens, none}, &down, 1, threads);
    }
}

}  // namespace faquant
