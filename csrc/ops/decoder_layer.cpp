#include "ops/decoder_layer.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>

#include "ops/attend.h"
#include "ops/elementwise.h"
#include "ops/linear.h"
#include "runtime/pool.h"

namespace faquant {
namespace {

constexpr int64_t kTokensPerJob = 8;

// Buffers for the intermediate results of a layer, large enough for the largest of several layers.
struct Activations {
    std::unique_ptr<float[]> q, k, v, attention, inner;
    std::unique_ptr<float[]> gate, output;  // of gelu; before its norm

    Activations(const CachedLayer* layers, int64_t count, int64_t tokens) {
        int64_t q_size = 0, kv_size = 0, inner_size = 0, gate_size = 0, output_size = 0;
        for (int64_t i = 0; i < count; ++i) {
            q_size = std::max(q_size, layers[i].layer.q_proj->outputs);
            kv_size = std::max(kv_size, layers[i].layer.k_proj->outputs);
            inner_size = std::max(inner_size, layers[i].layer.up_proj->outputs);
            const DecoderLayer& layer = layers[i].layer;
            gate_size = std::max(gate_size, layer.gelu ? layer.gate_proj->outputs : 0);
            if (layer.attention_output_norm.weight != nullptr || layer.mlp_output_norm.weight != nullptr) {
                output_size = layer.o_proj->outputs;
            }
        }
        const auto floats = [tokens](int64_t size) { return new float[static_cast<size_t>(tokens * size)]; };
        q.reset(floats(q_size));
        k.reset(floats(kv_size));
        v.reset(floats(kv_size));
        attention.reset(floats(q_size));
        inner.reset(floats(inner_size));
        gate.reset(floats(gate_size));
        output.reset(floats(output_size));
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
            // Rows of a head, or of all heads.
            const bool all = cached.layer.norms_all_heads;
            table.rms_norm(q_norm, q, all ? tokens : tokens * s.heads, all ? s.heads * s.dim : s.dim, q);
            table.rms_norm(k_norm, k, all ? tokens : tokens * s.kv_heads, all ? s.kv_heads * s.dim : s.dim, k);
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

// Adds the linear of `from`, after `norm` if it has a weight, to x [tokens, hidden].
void add_output(const KernelTable& table, const Linear& linear, const Norm& norm, const float* from, int64_t tokens,
                float* output, float* x, int64_t threads) {
    const bool normed = norm.weight != nullptr;
    const Product product = {&linear, normed ? output : x, !normed};
    apply(table, {from, tokens, Norm{}}, &product, 1, threads);
    if (!normed) {
        return;
    }
    const int64_t hidden = linear.outputs;
    parallel((tokens + kTokensPerJob - 1) / kTokensPerJob, threads, [&](int64_t job) {
        const int64_t first = job * kTokensPerJob, rows = std::min(kTokensPerJob, tokens - first);
        float *y = output + first * hidden, *sum = x + first * hidden;
        table.rms_norm(norm, y, rows, hidden, y);
        for (int64_t i = 0; i < rows * hidden; ++i) {
            sum[i] += y[i];
        }
    });
}

}  // namespace

void run_layers(const KernelTable& table, const CachedLayer* layers, int64_t count, const Batch& batch, float* x,
                int64_t threads, Saturated* saturated) {
    const Activations a(layers, count, batch.tokens);
    for (int64_t i = 0; i < count; ++i) {
        const DecoderLayer& layer = layers[i].layer;
        const Product qkv[] = {
            {layer.q_proj, a.q.get(), false}, {layer.k_proj, a.k.get(), false}, {layer.v_proj, a.v.get(), false}};
        apply(table, {x, batch.tokens, layer.attention_norm}, qkv, 3, threads);
        saturated[i] = rope_and_append(table, layers[i], batch, a, threads);
        const Attention attention = {layers[i].scheme, layers[i].cache, layers[i].window,
                                     batch.split,      a.q.get(),       a.attention.get()};
        saturated[i].q = attend(table, attention, batch.spans, batch.count, threads);
        add_output(table, *layer.o_proj, layer.attention_output_norm, a.attention.get(), batch.tokens, a.output.get(),
                   x, threads);
        const Inputs mlp = {x, batch.tokens, layer.mlp_norm};
        if (layer.gelu) {
            const Product products[] = {{layer.gate_proj, a.gate.get(), false}, {layer.up_proj, a.inner.get(), false}};
            apply(table, mlp, products, 2, threads);
            gated(table, Activation::kGelu, a.gate.get(), a.inner.get(), batch.tokens * layer.up_proj->outputs,
                  a.inner.get(), threads);
        } else {
            apply_gated(table, mlp, *layer.gate_proj, *layer.up_proj, a.inner.get(), threads);
        }
        add_output(table, *layer.down_proj, layer.mlp_output_norm, a.inner.get(), batch.tokens, a.output.get(), x,
                   threads);
    }
}

}  // namespace faquant
