#include <algorithm>
#include <cmath>
#include <deque>
#include <vector>

#include "ops/decoder_layer.h"
#include "self_test/parts.h"

namespace faquant {

const char* wrong_kernel_in_layers(const KernelTable& table) {
    constexpr int64_t kHidden = 36, kInner = 96, kHeads = 4, kKvHeads = 2, kDim = 12, kMaps = 2;
    constexpr int64_t kPages = 3, kLayers = 4;
    // Two sequences: one whose new tokens cross into another tile, page and split, and one that starts.
    constexpr int64_t kTokens[] = {5, 1}, kStarts[] = {kTile - 2, 3}, kAll = 6;
    const int64_t block_tables[][2] = {{2, 0}, {1}};
    Random random;

    std::deque<RandomLinear> linears;
    const auto linear = [&](int64_t inputs, int64_t outputs) -> RandomLinear& {
        return linears.emplace_back(random, inputs, outputs, 0.02f / std::sqrt(static_cast<float>(inputs)));
    };
    const auto rotated = [&](int64_t inputs, int64_t outputs, int64_t block) {
        RandomLinear& made = linear(inputs, outputs);
        made.linear.hadamard_block = block;
        return &made.linear;
    };
    const auto with_scale = [&](int64_t inputs, int64_t outputs, float scale) {
        return &linear(inputs, outputs).round_statically(scale, 3.0f).linear;
    };
    const std::vector<float> weight = random.floats(kHidden, 0.003f, 1.0f), bias = random.floats(kHidden, 0.003f);
    const Norm plain = {weight.data(), nullptr, 1e-5f}, biased = {weight.data(), bias.data(), 1e-5f};
    const DecoderLayer dynamic = {plain,
                                  {},
                                  {},
                                  plain,
                                  rotated(kHidden, kHeads * kDim, 4),
                                  rotated(kHidden, kKvHeads * kDim, 4),
                                  rotated(kHidden, kKvHeads * kDim, 0),
                                  rotated(kHeads * kDim, kHidden, 16),
                                  rotated(kHidden, kInner, 4),
                                  rotated(kHidden, kInner, 0),
                                  rotated(kInner, kHidden, 32)};
    const DecoderLayer with_scales = {biased,
                                      plain,
                                      biased,
                                      biased,
                                      with_scale(kHidden, kHeads * kDim, 0.02f),
                                      with_scale(kHidden, kKvHeads * kDim, 0.02f),
                                      with_scale(kHidden, kKvHeads * kDim, 0.03f),
                                      with_scale(kHeads * kDim, kHidden, 0.02f),
                                      with_scale(kHidden, kInner, 0.02f),
                                      with_scale(kHidden, kInner, 0.03f),
                                      with_scale(kInner, kHidden, 0.02f)};

    // Norms of outputs instead of inputs, and of all heads of q and k.
    const std::vector<float> of_heads = random.floats(kHeads * kDim, 0.003f, 1.0f);
    DecoderLayer with_outputs = dynamic;
    with_outputs.attention_norm = with_outputs.mlp_norm = {};
    with_outputs.attention_output_norm = plain;
    with_outputs.mlp_output_norm = biased;
    with_outputs.q_norm = with_outputs.k_norm = {of_heads.data(), nullptr, 1e-5f};
    with_outputs.norms_all_heads = with_outputs.gelu = true;

    const auto center = random.floats(kMaps * kKvHeads * kDim, 0.005f);
    const auto equalizer = random.floats(kMaps * kKvHeads * kDim, 0.003f, 1.0f);
    const auto scales = random.floats(kHeads * kDim, 0.0001f, 0.03f), offsets = random.floats(kKvHeads * kDim, 0.1f);
    std::vector<float> signs(kDim, 1.0f);
    signs[3] = signs[8] = -1.0f;
    Scheme mapped{};
    mapped.heads = kHeads;
    mapped.kv_heads = kKvHeads;
    mapped.dim = kDim;
    mapped.maps = 1;
    mapped.map_block = kTile;
    Scheme by_channel = mapped, by_head = mapped;
    mapped.maps = kMaps;
    mapped.k_center = center.data();
    mapped.k_equalizer = equalizer.data();
    mapped.rotation_block = 4;
    mapped.rotation_sign = signs.data();
    mapped.v_rotation_block = 4;
    mapped.p_levels = 32639;
    by_channel.q_scale = by_channel.k_scale = by_channel.v_scale = scales.data();
    by_channel.q_by_channel = by_channel.k_by_channel = true;
    by_channel.k_offset = by_channel.v_offset = offsets.data();
    by_channel.p_levels = 255;
    by_channel.quantized_sum = true;
    by_head.q_scale = by_head.k_scale = by_head.v_scale = scales.data();
    by_head.p_levels = 127;
    by_head.p_float16 = true;

    std::vector<Span> spans;
    std::vector<int64_t> slots, positions;
    for (int64_t i = 0; i < 2; ++i) {
        spans.push_back({static_cast<int64_t>(slots.size()), kTokens[i], kStarts[i], block_tables[i]});
        for (int64_t position = kStarts[i]; position < kStarts[i] + kTokens[i]; ++position) {
            slots.push_back(block_tables[i][position / kTile] * kTile + position % kTile);
            positions.push_back(position);
        }
    }
    const auto cos = random.floats(kAll * kDim, 0x1p-7f), sin = random.floats(kAll * kDim, 0x1p-7f);
    const auto x = random.floats(kAll * kHidden, 0.02f);
    const Batch batch = {kAll, cos.data(), sin.data(), slots.data(), positions.data(), spans.data(), 2, kTile};

    // Arbitrary past keys and values.
    constexpr int64_t kRows = kPages * kKvHeads * kTile, kBytes = kRows * padded_dim(kDim);
    std::vector<uint8_t> past(2 * kBytes);
    std::generate(past.begin(), past.end(), [&] { return random.next(); });
    std::vector<uint16_t> past_scales(2 * kRows);
    std::generate(past_scales.begin(), past_scales.end(),
                  [&] { return static_cast<uint16_t>(0x2000 + random.next()); });

    const auto run = [&](const KernelTable& kernels) {
        std::vector<uint8_t> stores[] = {past, past, past, past};
        std::vector<uint16_t> scales_of_tokens = past_scales;
        Cache caches[kLayers];
        for (int64_t i = 0; i < kLayers; ++i) {
            uint8_t* k = stores[i].data();
            caches[i] = {kPages, kTile, k, reinterpret_cast<int8_t*>(k + kBytes), nullptr, nullptr};
            caches[i].stride = kBytes / kPages;
            caches[i].scale_stride = kRows / kPages;
        }
        caches[0].k_scale = scales_of_tokens.data();
        caches[0].v_scale = scales_of_tokens.data() + kRows;
        const CachedLayer layers[kLayers] = {{dynamic, &mapped, &caches[0], INT32_MAX},
                                             {with_scales, &by_channel, &caches[1], 70},
                                             {dynamic, &by_head, &caches[2], INT32_MAX},
                                             {with_outputs, &by_channel, &caches[3], INT32_MAX}};
        std::vector<float> out = x;
        Saturated saturated[kLayers];
        run_layers(kernels, layers, kLayers, batch, out.data(), 1, saturated);
        for (const Saturated& beyond : saturated) {
            for (const int64_t count : {beyond.q, beyond.k, beyond.v}) {
                out.push_back(static_cast<float>(count));
            }
        }
        return out;
    };
    return wrong_kernel_in(table, "run_layers", run, {}, 0);
}

}  // namespace faquant
