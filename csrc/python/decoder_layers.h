#pragma once

#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "ops/decoder_layer.h"
#include "python/arrays.h"
#include "python/elementwise_functions.h"
#include "python/int8_linear.h"
#include "python/layer_cache.h"

// Consecutive layers of a model, with the caches that they append to.
class DecoderLayers {
  public:
    // For each layer: linears [q, k, v, o, gate, up, down], norms [attention, mlp, q, k, attention's output, mlp's
    // output], of which any may be None, cache, window, the kind of its RoPE, and whether gelu gates.
    void add(const std::vector<nb::object>& linears, const std::vector<nb::object>& norms, const nb::object& cache,
             const std::optional<int64_t>& window, int64_t rope, bool gelu) {
        require(linears.size() == 7 && norms.size() == 6, "A layer has seven linears and six norms.");
        std::vector<const faquant::Linear*> l;
        for (const nb::object& linear : linears) {
            require(nb::isinstance<Int8Linear>(linear), "linears must be Int8Linears.");
            l.push_back(&nb::cast<const Int8Linear&>(linear).linear());
        }
        require(nb::isinstance<LayerCache>(cache), "cache must be a LayerCache.");
        const auto& of_layer = nb::cast<const LayerCache&>(cache);
        const faquant::Scheme& s = of_layer.scheme();
        const int64_t hidden = l[0]->inputs, inner = l[4]->outputs, q = s.heads * s.dim, kv = s.kv_heads * s.dim;
        const int64_t sizes[7][2] = {{hidden, q},     {hidden, kv},    {hidden, kv},   {q, hidden},
                                     {hidden, inner}, {hidden, inner}, {inner, hidden}};
        for (size_t i = 0; i < l.size(); ++i) {
            require(l[i]->inputs == sizes[i][0] && l[i]->outputs == sizes[i][1], "The linears do not fit together.");
        }
        require(s.dim % 2 == 0, "RoPE needs an even number of channels.");
        require(norms[2].is_none() == norms[3].is_none(), "Either both q and k have norms, or neither.");
        faquant::Norm n[6] = {};
        bool all_heads = false;
        for (size_t i = 0; i < norms.size(); ++i) {
            if (norms[i].is_none()) {
                continue;
            }
            require(nb::isinstance<RmsNorm>(norms[i]), "norms must be RmsNorms or None.");
            const auto& norm = nb::cast<const RmsNorm&>(norms[i]);
            const bool of_heads = i == 2 || i == 3;
            if (of_heads && norm.size() != s.dim) {
                all_heads = true;
            }
            const int64_t size = !of_heads ? hidden : !all_heads ? s.dim : i == 2 ? q : kv;
            require(norm.size() == size, "A norm has another size than what it is for.");
            n[i] = norm.norm();
        }
        require(layers_.empty() || (layers_[0].layer.q_proj->inputs == hidden && layers_[0].scheme->dim == s.dim &&
                                    layers_[0].cache->page_size == of_layer.cache().page_size),
                "The layers do not fit together.");
        require(rope >= 0, "rope must not be negative.");
        kinds_ = std::max(kinds_, rope + 1);
        kept_.insert(kept_.end(), linears.begin(), linears.end());
        kept_.insert(kept_.end(), norms.begin(), norms.end());
        kept_.push_back(cache);
        layers_.push_back(
            {{n[0], n[2], n[3], n[1], l[0], l[1], l[2], l[3], l[4], l[5], l[6], rope, n[4], n[5], all_heads, gelu},
             &s,
             &of_layer.cache(),
             checked_window(window)});
    }

    // x [tokens, hidden], in place; cos and sin [tokens, kinds, dim], spans and block_tables as for LayerCache.attend.
    // Returns, for each layer, how many values of q, k and v were beyond their static scales.
    std::vector<std::array<int64_t, 3>> run(const WritableArray& x, const Array& cos, const Array& sin,
                                            const Array& spans, const Array& block_tables, int64_t split,
                                            int64_t threads, const std::optional<std::string>& isa) const {
        require(split > 0 && split % faquant::kTile == 0, "split must be a multiple of a tile.");
        require(!layers_.empty(), "There are no layers.");
        const int64_t tokens = shape_of(x, "x", 2)[0];
        auto* stream = data_of<float>(x, "x", "float32", {tokens, hidden_size()});
        const int64_t kinds = cos.ndim() == 3 ? static_cast<int64_t>(cos.shape(1)) : 0;
        require(kinds >= kinds_, "There are fewer kinds of tables than the layers need.");
        const auto* of_cos = data_of<const float>(cos, "cos", "float32", {tokens, kinds, head_dim()});
        const auto* of_sin = data_of<const float>(sin, "sin", "float32", {tokens, kinds, head_dim()});
        std::vector<float> cos_by_kind, sin_by_kind;
        if (kinds > 1) {
            of_cos = by_kind(of_cos, tokens, kinds, &cos_by_kind);
            of_sin = by_kind(of_sin, tokens, kinds, &sin_by_kind);
        }
        faquant::Cache smallest = *layers_[0].cache;
        int64_t window = 0;
        for (const faquant::CachedLayer& layer : layers_) {
            smallest.pages = std::min(smallest.pages, layer.cache->pages);
            window = std::max(window, layer.window);
        }
        const std::vector<faquant::Span> all = checked_spans(smallest, spans, block_tables, tokens, window);
        std::vector<int64_t> slots, positions;
        for (const faquant::Span& span : all) {
            for (int64_t position = span.start; position < span.start + span.tokens; ++position) {
                const int64_t page = span.block_table[position / smallest.page_size];
                slots.push_back(page * smallest.page_size + position % smallest.page_size);
                positions.push_back(position);
            }
        }
        const faquant::Batch batch = {
            tokens, of_cos, of_sin, slots.data(), positions.data(), all.data(), static_cast<int64_t>(all.size()),
            split};
        std::vector<faquant::Saturated> saturated(layers_.size());
        {
            const faquant::KernelTable& table = kernels(isa);
            nb::gil_scoped_release unlocked;
            faquant::run_layers(table, layers_.data(), static_cast<int64_t>(layers_.size()), batch, stream,
                                threads_of(threads), saturated.data());
        }
        std::vector<std::array<int64_t, 3>> counts;
        for (const faquant::Saturated& some : saturated) {
            counts.push_back({some.q, some.k, some.v});
        }
        return counts;
    }

    int64_t hidden_size() const { return layers_.empty() ? 0 : layers_[0].layer.q_proj->inputs; }
    int64_t head_dim() const { return layers_.empty() ? 0 : layers_[0].scheme->dim; }

    static void bind(nb::module_& m) {
        using namespace nb::literals;
        nb::class_<DecoderLayers>(m, "DecoderLayers")
            .def(nb::init<>())
            .def_prop_ro("hidden_size", &DecoderLayers::hidden_size)
            .def_prop_ro("head_dim", &DecoderLayers::head_dim)
            .def("add", &DecoderLayers::add, nb::kw_only(), "linears"_a, "norms"_a, "cache"_a, "window"_a.none(),
                 "rope"_a = 0, "gelu"_a = false)
            .def("run", &DecoderLayers::run, "x"_a, "cos"_a, "sin"_a, "spans"_a, "block_tables"_a, "split"_a,
                 "threads"_a, "isa"_a.none());
    }

  private:
    // Tables [tokens, kinds, dim] as [kinds, tokens, dim].
    const float* by_kind(const float* tables, int64_t tokens, int64_t kinds, std::vector<float>* out) const {
        const int64_t dim = head_dim();
        out->resize(static_cast<size_t>(tokens * kinds * dim));
        for (int64_t row = 0; row < tokens * kinds; ++row) {
            std::copy_n(tables + row * dim, dim, out->data() + (row % kinds * tokens + row / kinds) * dim);
        }
        return out->data();
    }

    int64_t kinds_ = 1;
    std::vector<nb::object> kept_;
    std::vector<faquant::CachedLayer> layers_;
};
