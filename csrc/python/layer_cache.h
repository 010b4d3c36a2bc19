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

// As good as none, and far from overflow.
constexpr int64_t kNoWindow = int64_t{1} << 60;

// Spans [count, 2] and block_tables [count, width] by address: the tokens of all sequences, whose pages must be in the
// cache as far as a window of so many keys sees them.
inline std::vector<faquant::Span> checked_spans(const faquant::Cache& cache, uintptr_t spans, uintptr_t block_tables,
                                                int64_t count, int64_t width, int64_t tokens, int64_t window) {
    const auto* numbers = reinterpret_cast<const int64_t*>(spans);
    const auto* tables = reinterpret_cast<const int64_t*>(block_tables);
    std::vector<faquant::Span> all;
    int64_t first = 0;
    for (int64_t i = 0; i < count; ++i) {
        const faquant::Span span = {first, numbers[2 * i], numbers[2 * i + 1], tables + i * width};
        const int64_t size = cache.page_size;
        require(span.tokens > 0 && span.start >= 0, "A span must have tokens, and start at 0 or behind it.");
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

// Room for a window as the kernels want it.
inline int64_t checked_window(const std::optional<int64_t>& window) {
    require(!window || *window > 0, "window must be positive.");
    return std::min(window.value_or(kNoWindow), kNoWindow);
}

// One layer's cache with its scheme: all pointers are checked here, once.
class LayerCache {
  public:
    LayerCache(int64_t heads, const WritableArray& k, const WritableArray& v,
               const std::optional<WritableArray>& k_scales, const std::optional<WritableArray>& v_scales, int64_t dim,
               int64_t map_block, const OptionalArray& k_center, const OptionalArray& k_equalizer,
               int64_t rotation_block, const OptionalArray& rotation_sign, int64_t v_rotation_block,
               const OptionalArray& q_scale, bool q_by_channel, const OptionalArray& k_scale, bool k_by_channel,
               const OptionalArray& k_offset, const OptionalArray& v_scale, const OptionalArray& v_offset,
               int32_t p_levels, bool quantized_sum)
        : kept_{k_center, k_equalizer, rotation_sign, q_scale, k_scale, k_offset, v_scale, v_offset},
          stores_{k, v, k_scales, v_scales} {
        const std::vector<int64_t> of_tiles = tiles_shape(heads, k, dim);
        const int64_t pages = of_tiles[0], kv_heads = of_tiles[1], page_size = of_tiles[2] * faquant::kTile;
        require(map_block > 0 && map_block % faquant::kTile == 0, "map_block must be a multiple of a tile.");
        require(p_levels == 127 || p_levels == 255 || p_levels == 32767, "p_levels must be 127, 255 or 32767.");
        require(k_scales.has_value() != k_scale.has_value(), "k_scales or k_scale must be given, and not both.");
        require(v_scales.has_value() != v_scale.has_value(), "v_scales or v_scale must be given, and not both.");
        require(k_scale.has_value() || !k_offset.has_value(), "k_offset needs k_scale.");
        require(v_scale.has_value() || (!v_offset.has_value() && !quantized_sum),
                "v_offset and quantized_sum need v_scale.");
        for (const int64_t block : {rotation_block, v_rotation_block}) {
            require(block >= 0 && (block & (block - 1)) == 0 && (block == 0 || dim % block == 0),
                    "A rotation block must be a power of two that divides the head.");
        }
        const OptionalArray& any_map = k_center ? k_center : k_equalizer;
        const int64_t maps = any_map && any_map->ndim() > 0 ? static_cast<int64_t>(any_map->shape(0)) : 1;
        require(maps > 0, "There must be one map at least.");
        const std::vector<int64_t> of_q = {heads, dim}, of_kv = {kv_heads, dim}, of_maps = {maps, kv_heads, dim};
        scheme_ = {heads,
                   kv_heads,
                   dim,
                   maps,
                   map_block,
                   floats(k_center, "k_center", of_maps),
                   floats(k_equalizer, "k_equalizer", of_maps),
                   rotation_block,
                   floats(rotation_sign, "rotation_sign", {dim}),
                   v_rotation_block,
                   floats(q_scale, "q_scale", of_q),
                   q_by_channel,
                   floats(k_scale, "k_scale", of_kv),
                   k_by_channel,
                   floats(k_offset, "k_offset", of_kv),
                   floats(v_scale, "v_scale", of_kv),
                   floats(v_offset, "v_offset", of_kv),
                   p_levels,
                   quantized_sum};
        const std::vector<int64_t> of_scales = {pages, kv_heads, page_size};
        cache_ = {pages,
                  page_size,
                  data_of<uint8_t>(k, "k", "uint8", of_tiles),
                  data_of<int8_t>(v, "v", "int8", of_tiles),
                  k_scales ? halves(*k_scales, "k_scales", "float16", of_scales) : nullptr,
                  v_scales ? halves(*v_scales, "v_scales", "float16", of_scales) : nullptr};
    }

    // Of bfloat16.
    LayerCache(int64_t heads, const WritableArray& k, const WritableArray& v, int64_t dim) : stores_{k, v} {
        const std::vector<int64_t> of_tiles = tiles_shape(heads, k, dim);
        scheme_.heads = heads;
        scheme_.kv_heads = of_tiles[1];
        scheme_.dim = dim;
        cache_.pages = of_tiles[0];
        cache_.page_size = of_tiles[2] * faquant::kTile;
        cache_.bfloat16_k = halves(k, "k", "bfloat16", of_tiles);
        cache_.bfloat16_v = halves(v, "v", "bfloat16", of_tiles);
    }

    // k and v [tokens, kv_heads, dim] by address, checked in Python. How many values of them were beyond their static
    // scales.
    std::pair<int64_t, int64_t> append(uintptr_t k, uintptr_t v, uintptr_t slots, uintptr_t positions, int64_t tokens,
                                       int64_t threads, const std::optional<std::string>& isa) const {
        const auto* slot = reinterpret_cast<const int64_t*>(slots);
        const auto* position = reinterpret_cast<const int64_t*>(positions);
        for (int64_t i = 0; i < tokens; ++i) {
            require(slot[i] >= 0 && slot[i] < cache_.pages * cache_.page_size, "A slot is not in the cache.");
            require(position[i] >= 0, "A position is negative.");
        }
        const faquant::KernelTable& table = kernels(isa);
        nb::gil_scoped_release unlocked;
        int64_t saturated[2] = {};
        faquant::append(table, scheme_, cache_, reinterpret_cast<const float*>(k), reinterpret_cast<const float*>(v),
                        slot, position, tokens, threads, saturated);
        return {saturated[0], saturated[1]};
    }

    // out and q [tokens, heads, dim], spans [count, 2] and block_tables [count, width] by address, checked in Python.
    // How many values of q were beyond their static scale.
    int64_t attend(uintptr_t out, uintptr_t q, int64_t tokens, uintptr_t spans, uintptr_t block_tables, int64_t count,
                   int64_t width, const std::optional<int64_t>& window, int64_t split, int64_t threads,
                   const std::optional<std::string>& isa) const {
        require(split > 0 && split % faquant::kTile == 0, "split must be a multiple of a tile.");
        const int64_t keys = checked_window(window);
        const std::vector<faquant::Span> all = checked_spans(cache_, spans, block_tables, count, width, tokens, keys);
        const faquant::Attention attention = {
            &scheme_, &cache_, keys, split, reinterpret_cast<const float*>(q), reinterpret_cast<float*>(out)};
        const faquant::KernelTable& table = kernels(isa);
        nb::gil_scoped_release unlocked;
        return faquant::attend(table, attention, all.data(), count, threads);
    }

    const faquant::Scheme& scheme() const { return scheme_; }
    const faquant::Cache& cache() const { return cache_; }

    static void bind(nb::module_& m) {
        using namespace nb::literals;
        nb::class_<LayerCache>(m, "LayerCache")
            .def(nb::init<int64_t, const WritableArray&, const WritableArray&, const std::optional<WritableArray>&,
                          const std::optional<WritableArray>&, int64_t, int64_t, const OptionalArray&,
                          const OptionalArray&, int64_t, const OptionalArray&, int64_t, const OptionalArray&, bool,
                          const OptionalArray&, bool, const OptionalArray&, const OptionalArray&, const OptionalArray&,
                          int32_t, bool>(),
                 nb::kw_only(), "heads"_a, "k"_a, "v"_a, "k_scales"_a.none(), "v_scales"_a.none(), "dim"_a,
                 "map_block"_a, "k_center"_a.none(), "k_equalizer"_a.none(), "rotation_block"_a,
                 "rotation_sign"_a.none(), "v_rotation_block"_a, "q_scale"_a.none(), "q_by_channel"_a,
                 "k_scale"_a.none(), "k_by_channel"_a, "k_offset"_a.none(), "v_scale"_a.none(), "v_offset"_a.none(),
                 "p_levels"_a, "quantized_sum"_a)
            .def(nb::init<int64_t, const WritableArray&, const WritableArray&, int64_t>(), nb::kw_only(), "heads"_a,
                 "k"_a, "v"_a, "dim"_a)
            .def("append", &LayerCache::append, "k"_a, "v"_a, "slots"_a, "positions"_a, "tokens"_a, "threads"_a,
                 "isa"_a.none())
            .def("attend", &LayerCache::attend, "out"_a, "q"_a, "tokens"_a, "spans"_a, "block_tables"_a, "count"_a,
                 "width"_a, "window"_a.none(), "split"_a, "threads"_a, "isa"_a.none());
    }

  private:
    // Of k and v: [pages, kv_heads, tiles, elements of a tile].
    static std::vector<int64_t> tiles_shape(int64_t heads, const WritableArray& k, int64_t dim) {
        require(k.ndim() == 4, "k must have four dimensions.");
        const int64_t kv_heads = static_cast<int64_t>(k.shape(1));
        require(kv_heads > 0 && heads > 0 && heads % kv_heads == 0, "heads must be a multiple of k's.");
        require(dim > 0 && dim <= faquant::kMaxHeadDim, "A head must have 1 to 1024 channels.");
        return {static_cast<int64_t>(k.shape(0)), kv_heads, static_cast<int64_t>(k.shape(2)),
                faquant::kTile * faquant::padded_dim(dim)};
    }

    static uint16_t* halves(const WritableArray& array, const char* name, const char* kind,
                            const std::vector<int64_t>& shape) {
        const std::string dtype = std::string("int16 (a view of ") + kind + ")";
        return reinterpret_cast<uint16_t*>(data_of<int16_t>(array, name, dtype.c_str(), shape));
    }

    std::vector<OptionalArray> kept_;
    std::vector<std::optional<WritableArray>> stores_;
    faquant::Scheme scheme_{};
    faquant::Cache cache_{};
};
