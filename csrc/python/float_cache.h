#pragma once

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <string>
#include <vector>

#include "ops/attend.h"
#include "python/arrays.h"
#include "python/layer_cache.h"

// One layer's float32 cache.
class FloatCache {
  public:
    // k and v [pages, page_size, kv_heads, dim]
    FloatCache(int64_t heads, const WritableArray& k, const WritableArray& v) : stores_{k, v} {
        require(k.ndim() == 4, "k must have four dimensions.");
        std::vector<int64_t> shape;
        for (size_t i = 0; i < 4; ++i) {
            shape.push_back(static_cast<int64_t>(k.shape(i)));
        }
        require(shape[1] > 0, "A page must hold a token.");
        require(shape[2] > 0 && heads > 0 && heads % shape[2] == 0, "heads must be a multiple of k's.");
        require(shape[3] > 0 && shape[3] <= faquant::kMaxHeadDim, "A head must have 1 to 1024 channels.");
        sizes_.heads = heads;
        sizes_.kv_heads = shape[2];
        sizes_.dim = shape[3];
        cache_.pages = shape[0];
        cache_.page_size = shape[1];
        int64_t v_stride = 0;
        cache_.float_k = data_of<float>(k, "k", "float32", shape, &cache_.stride);
        cache_.float_v = data_of<float>(v, "v", "float32", shape, &v_stride);
        require(cache_.stride == v_stride, "The pages of k and v must be equally far apart.");
    }

    // k and v [tokens, kv_heads, dim], slots int64 [tokens]
    void append(const Array& k, const Array& v, const Array& slots) const {
        const int64_t tokens = slots.ndim() == 1 ? static_cast<int64_t>(slots.shape(0)) : 0;
        const std::vector<int64_t> shape = {tokens, sizes_.kv_heads, sizes_.dim};
        const auto* places = data_of<const int64_t>(slots, "slots", "int64", {tokens});
        const auto* keys = data_of<const float>(k, "k", "float32", shape);
        const auto* values = data_of<const float>(v, "v", "float32", shape);
        for (int64_t i = 0; i < tokens; ++i) {
            require(places[i] >= 0 && places[i] < cache_.pages * cache_.page_size, "A slot is not in the cache.");
        }
        nb::gil_scoped_release unlocked;
        int64_t saturated[2];
        faquant::append(faquant::kPortableKernels, sizes_, cache_, keys, values, places, nullptr, tokens, 1, saturated);
    }

    // out and q [tokens, heads, dim], spans int64 [count, 2] of tokens and start, block_tables int64 [count, width]
    void attend(const WritableArray& out, const Array& q, const Array& spans, const Array& block_tables,
                const std::optional<int64_t>& window, int64_t threads, const std::optional<std::string>& isa) const {
        const int64_t tokens = shape_of(q, "q", 3)[0];
        const std::vector<int64_t> shape = {tokens, sizes_.heads, sizes_.dim};
        const auto* rows = data_of<const float>(q, "q", "float32", shape);
        auto* results = data_of<float>(out, "out", "float32", shape);
        const int64_t keys = checked_window(window);
        const std::vector<faquant::Span> all = checked_spans(cache_, spans, block_tables, tokens, keys);
        const faquant::Attention attention = {&sizes_, &cache_, keys, faquant::kFloatSplit, rows, results};
        const faquant::KernelTable& table = kernels(isa);
        nb::gil_scoped_release unlocked;
        faquant::attend(table, attention, all.data(), static_cast<int64_t>(all.size()), threads_of(threads));
    }

    static void bind(nb::module_& m) {
        using namespace nb::literals;
        nb::class_<FloatCache>(m, "FloatCache")
            .def(nb::init<int64_t, const WritableArray&, const WritableArray&>(), nb::kw_only(), "heads"_a, "k"_a,
                 "v"_a)
            .def("append", &FloatCache::append, "k"_a, "v"_a, "slots"_a)
            .def("attend", &FloatCache::attend, "out"_a, "q"_a, "spans"_a, "block_tables"_a, "window"_a.none(),
                 "threads"_a, "isa"_a = nb::none());
    }

  private:
    WritableArray stores_[2];
    faquant::Scheme sizes_{};
    faquant::Cache cache_{};
};
