#pragma once

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ops/attend.h"
#include "python/arrays.h"
#include "python/keywords.h"

// Effectively none, and far from overflow.
constexpr int64_t kNoWindow = int64_t{1} << 60;

// Spans int64 [count, 2] and block_tables int64 [count, width]: the tokens of all sequences. Pages must be in the cache
// as far as a window of this many keys sees them.
inline std::vector<faquant::Span> checked_spans(const faquant::Cache& cache, const Array& spans,
                                                const Array& block_tables, int64_t tokens, int64_t window) {
    const std::vector<int64_t> shape = shape_of(block_tables, "block_tables", 2);
    const int64_t count = shape[0], width = shape[1];
    const auto* numbers = data_of<const int64_t>(spans, "tokens_starts", "int64", {count, 2});
    const auto* tables = data_of<const int64_t>(block_tables, "block_tables", "int64", shape);
    std::vector<faquant::Span> all;
    int64_t first = 0;
    for (int64_t i = 0; i < count; ++i) {
        const faquant::Span span = {first, numbers[2 * i], numbers[2 * i + 1], tables + i * width};
        const int64_t size = cache.page_size;
        require(span.tokens > 0 && span.start >= 0, "A span must have tokens, and must not start before 0.");
        require(span.tokens <= width * size && span.start <= width * size - span.tokens,
                "A span's block_table is too short.");
        const int64_t end = span.start + span.tokens;
        const int64_t oldest = std::max<int64_t>(0, span.start - window + 1);
        for (int64_t page = oldest / size; page * size < end; ++page) {
            require(span.block_table[page] >= 0 && span.block_table[page] < cache.pages, "A page is not in the cache.");
        }
        first += span.tokens;
        all.push_back(span);
    }
    require(first == tokens, "The spans must have as many tokens as there are rows.");
    return all;
}

// A window in the kernels' representation.
inline int64_t checked_window(const std::optional<int64_t>& window) {
    require(!window || *window > 0, "window must be positive.");
    return std::min(window.value_or(kNoWindow), kNoWindow);
}

// One layer's cache with its scheme; all pointers are checked once, here.
class LayerCache {
  public:
    explicit LayerCache(const nb::kwargs& given) {
        Keywords all(given);
        const auto heads = all.take<int64_t>("heads"), dim = all.take<int64_t>("dim");
        const auto k = all.take<WritableArray>("k"), v = all.take<WritableArray>("v");
        const auto k_scales = all.take<std::optional<WritableArray>>("k_scales");
        const auto v_scales = all.take<std::optional<WritableArray>>("v_scales");
        const std::vector<int64_t> of_tiles = tiles_shape(heads, k, dim);
        const int64_t pages = of_tiles[0], kv_heads = of_tiles[1], page_size = of_tiles[2] * faquant::kTile;
        const std::vector<int64_t> of_q = {heads, dim}, of_kv = {kv_heads, dim},
                                   of_scales = {pages, kv_heads, page_size};
        const auto table = [&](const char* name, const std::vector<int64_t>& shape) {
            kept_.push_back(all.take<OptionalArray>(name));
            return floats(kept_.back(), name, shape);
        };

        faquant::Scheme& s = scheme_;
        s.heads = heads;
        s.kv_heads = kv_heads;
        s.dim = dim;
        s.map_block = all.take<int64_t>("map_block");
        const auto k_center = all.take<OptionalArray>("k_center"), k_equalizer = all.take<OptionalArray>("k_equalizer");
        const OptionalArray& any_map = k_center ? k_center : k_equalizer;
        s.maps = any_map && any_map->ndim() > 0 ? static_cast<int64_t>(any_map->shape(0)) : 1;
        s.k_center = floats(k_center, "k_center", {s.maps, kv_heads, dim});
        s.k_equalizer = floats(k_equalizer, "k_equalizer", {s.maps, kv_heads, dim});
        kept_.insert(kept_.end(), {k_center, k_equalizer});
        s.rotation_block = all.take<int64_t>("rotation_block");
        s.rotation_sign = table("rotation_sign", {dim});
        s.v_rotation_block = all.take<int64_t>("v_rotation_block");
        s.q_scale = table("q_scale", of_q);
        s.q_by_channel = all.take<bool>("q_by_channel");
        s.k_scale = table("k_scale", of_kv);
        s.k_by_channel = all.take<bool>("k_by_channel");
        s.k_offset = table("k_offset", of_kv);
        s.v_scale = table("v_scale", of_kv);
        s.v_offset = table("v_offset", of_kv);
        s.p_levels = all.take<int32_t>("p_levels");
        s.p_float16 = all.take<bool>("p_float16");
        s.quantized_sum = all.take<bool>("quantized_sum");
        all.require_all_taken();

        require(s.maps > 0, "There must be at least one map.");
        require(s.map_block > 0 && s.map_block % faquant::kTile == 0, "map_block must be a multiple of a tile.");
        require(s.p_levels == 127 || s.p_levels == 255 || s.p_levels == 32639 || s.p_levels == 32767,
                "p_levels must be 127, 255, 32639 or 32767.");
        require(s.p_float16 == (s.p_levels == 127), "p_float16 and p_levels 127 need each other.");
        require(k_scales.has_value() == (s.k_scale == nullptr), "Either k_scales or k_scale must be given.");
        require(v_scales.has_value() == (s.v_scale == nullptr), "Either v_scales or v_scale must be given.");
        require(s.k_scale != nullptr || s.k_offset == nullptr, "k_offset needs k_scale.");
        require(s.v_scale != nullptr || (s.v_offset == nullptr && !s.quantized_sum),
                "v_offset and quantized_sum need v_scale.");
        for (const int64_t block : {s.rotation_block, s.v_rotation_block}) {
            require(block >= 0 && (block & (block - 1)) == 0 && (block == 0 || dim % block == 0),
                    "A rotation block must be a power of two that divides the head.");
        }
        stores_ = {k, v, k_scales, v_scales};
        cache_.pages = pages;
        cache_.page_size = page_size;
        int64_t v_stride = 0, v_scale_stride = 0;
        cache_.k = data_of<uint8_t>(k, "k", "uint8", of_tiles, &cache_.stride);
        cache_.v = data_of<int8_t>(v, "v", "int8", of_tiles, &v_stride);
        cache_.k_scale = k_scales ? halves_of(*k_scales, "k_scales", of_scales, &cache_.scale_stride) : nullptr;
        cache_.v_scale = v_scales ? halves_of(*v_scales, "v_scales", of_scales, &v_scale_stride) : nullptr;
        cache_.scale_stride = k_scales ? cache_.scale_stride : v_scale_stride;
        require(cache_.stride == v_stride && (!k_scales || !v_scales || cache_.scale_stride == v_scale_stride),
                "The pages of k and v must be equally far apart, and so must those of their scales.");
    }

    // With bfloat16.
    LayerCache(int64_t heads, const WritableArray& k, const WritableArray& v, int64_t dim) : stores_{k, v} {
        const std::vector<int64_t> of_tiles = tiles_shape(heads, k, dim);
        scheme_.heads = heads;
        scheme_.kv_heads = of_tiles[1];
        scheme_.dim = dim;
        cache_.pages = of_tiles[0];
        cache_.page_size = of_tiles[2] * faquant::kTile;
        int64_t v_stride = 0;
        cache_.bfloat16_k = halves_of(k, "k", of_tiles, &cache_.stride);
        cache_.bfloat16_v = halves_of(v, "v", of_tiles, &v_stride);
        require(cache_.stride == v_stride, "The pages of k and v must be equally far apart.");
    }

    // k and v [tokens, kv_heads, dim], slots and positions [tokens]. Returns how many values of k and v were beyond
    // their static scales.
    std::pair<int64_t, int64_t> append(const Array& k, const Array& v, const Array& slots, const Array& positions,
                                       int64_t threads, const std::optional<std::string>& isa) const {
        const int64_t tokens = shape_of(k, "k", 3)[0];
        const std::vector<int64_t> of_kv = {tokens, scheme_.kv_heads, scheme_.dim};
        const auto* keys = data_of<const float>(k, "k", "float32", of_kv);
        const auto* values = data_of<const float>(v, "v", "float32", of_kv);
        const auto* slot = data_of<const int64_t>(slots, "slots", "int64", {tokens});
        const auto* position = data_of<const int64_t>(positions, "positions", "int64", {tokens});
        for (int64_t i = 0; i < tokens; ++i) {
            require(slot[i] >= 0 && slot[i] < cache_.pages * cache_.page_size, "A slot is not in the cache.");
            require(position[i] >= 0, "A position is negative.");
        }
        const faquant::KernelTable& table = kernels(isa);
        nb::gil_scoped_release unlocked;
        int64_t saturated[2] = {};
        faquant::append(table, scheme_, cache_, keys, values, slot, position, tokens, threads_of(threads), saturated);
        return {saturated[0], saturated[1]};
    }

    // out and q [tokens, heads, dim], spans [count, 2] and block_tables [count, width]. Returns how many values of q
    // were beyond their static scale.
    int64_t attend(const WritableArray& out, const Array& q, const Array& spans, const Array& block_tables,
                   const std::optional<int64_t>& window, int64_t split, int64_t threads,
                   const std::optional<std::string>& isa) const {
        const int64_t tokens = shape_of(q, "q", 3)[0];
        const std::vector<int64_t> of_q = {tokens, scheme_.heads, scheme_.dim};
        const auto* queries = data_of<const float>(q, "q", "float32", of_q);
        auto* outputs = data_of<float>(out, "out", "float32", of_q);
        require(split > 0 && split % faquant::kTile == 0, "split must be a multiple of a tile.");
        const int64_t keys = checked_window(window);
        const std::vector<faquant::Span> all = checked_spans(cache_, spans, block_tables, tokens, keys);
        const faquant::Attention attention = {&scheme_, &cache_, keys, split, queries, outputs};
        const faquant::KernelTable& table = kernels(isa);
        nb::gil_scoped_release unlocked;
        return faquant::attend(table, attention, all.data(), static_cast<int64_t>(all.size()), threads_of(threads));
    }

    const faquant::Scheme& scheme() const { return scheme_; }
    const faquant::Cache& cache() const { return cache_; }

    static void bind(nb::module_& m) {
        using namespace nb::literals;
        nb::class_<LayerCache>(m, "LayerCache")
            .def(nb::init<int64_t, const WritableArray&, const WritableArray&, int64_t>(), nb::kw_only(), "heads"_a,
                 "k"_a, "v"_a, "dim"_a)
            .def(nb::init<const nb::kwargs&>())
            .def("append", &LayerCache::append, "k"_a, "v"_a, "slots"_a, "positions"_a, "threads"_a, "isa"_a.none())
            .def("attend", &LayerCache::attend, "out"_a, "q"_a, "spans"_a, "block_tables"_a, "window"_a.none(),
                 "split"_a, "threads"_a, "isa"_a.none());
    }

  private:
    // The shape of k and v: [pages, kv_heads, tiles, elements of a tile].
    static std::vector<int64_t> tiles_shape(int64_t heads, const WritableArray& k, int64_t dim) {
        require(k.ndim() == 4, "k must have four dimensions.");
        const int64_t kv_heads = static_cast<int64_t>(k.shape(1));
        require(kv_heads > 0 && heads > 0 && heads % kv_heads == 0, "heads must be a multiple of k's.");
        require(dim > 0 && dim <= faquant::kMaxHeadDim, "A head must have 1 to 1024 channels.");
        return {static_cast<int64_t>(k.shape(0)), kv_heads, static_cast<int64_t>(k.shape(2)),
                faquant::kTile * faquant::padded_dim(dim)};
    }

    std::vector<OptionalArray> kept_;
    std::vector<std::optional<WritableArray>> stores_;
    faquant::Scheme scheme_{};
    faquant::Cache cache_{};
};
