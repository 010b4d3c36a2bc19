#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "attend.h"
#include "cpu_features.h"
#include "dispatch.h"
#include "elementwise.h"
#include "linear.h"
#include "self_test.h"
#include "stream.h"

using namespace nb::literals;

namespace {

int64_t common_length(const Array& a, const Array& b) {
    if (a.shape(0) != b.shape(0)) {
        throw std::invalid_argument("a and b must be equally long, not " + std::to_string(a.shape(0)) + " and " +
                                    std::to_string(b.shape(0)) + ".");
    }
    const int64_t n = static_cast<int64_t>(a.shape(0));
    if (n > faquant::kMaxDotLength) {
        throw std::invalid_argument("a and b have " + std::to_string(n) +
                                    " elements; the sum is sure to fit only up to " +
                                    std::to_string(faquant::kMaxDotLength) + ".");
    }
    return n;
}

const faquant::KernelTable& kernels(const std::optional<std::string>& isa) {
    return isa ? faquant::find_kernels(*isa) : *faquant::selected_kernels().kernels;
}

int32_t dot_u8s8(const Array& a, const Array& b, const std::optional<std::string>& isa) {
    const uint8_t* x = vector_data<uint8_t>(a, "a", "uint8");
    const int8_t* y = vector_data<int8_t>(b, "b", "int8");
    const int64_t n = common_length(a, b);
    const faquant::KernelTable& table = kernels(isa);
    nb::gil_scoped_release unlocked;
    return table.dot_u8s8(x, y, n);
}

int32_t dot_s8s8(const Array& a, const Array& b, const std::optional<std::string>& isa) {
    const int8_t* x = vector_data<int8_t>(a, "a", "int8");
    const int8_t* y = vector_data<int8_t>(b, "b", "int8");
    const int64_t n = common_length(a, b);
    const faquant::KernelTable& table = kernels(isa);
    nb::gil_scoped_release unlocked;
    return table.dot_s8s8(x, y, n);
}

// As good as none, and far from overflow.
constexpr int64_t kNoWindow = int64_t{1} << 60;

using OptionalArray = std::optional<Array>;
using WritableArray = nb::ndarray<nb::device::cpu>;

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
        require(k.ndim() == 4, "k must have four dimensions.");
        const int64_t pages = static_cast<int64_t>(k.shape(0)), kv_heads = static_cast<int64_t>(k.shape(1));
        const int64_t tiles = static_cast<int64_t>(k.shape(2)), padded = faquant::padded_dim(dim);
        require(kv_heads > 0 && heads > 0 && heads % kv_heads == 0, "heads must be a multiple of k's.");
        require(dim > 0 && dim <= faquant::kMaxHeadDim, "A head must have 1 to 1024 channels.");
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
        const int64_t page_size = tiles * faquant::kTile;
        const std::vector<int64_t> of_scales = {pages, kv_heads, page_size};
        cache_ = {pages,
                  page_size,
                  data_of<uint8_t>(k, "k", "uint8", {pages, kv_heads, tiles, faquant::kTile * padded}),
                  data_of<int8_t>(v, "v", "int8", {pages, kv_heads, tiles, faquant::kTile * padded}),
                  k_scales ? halves(*k_scales, "k_scales", of_scales) : nullptr,
                  v_scales ? halves(*v_scales, "v_scales", of_scales) : nullptr};
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
        require(!window || *window > 0, "window must be positive.");
        require(split > 0 && split % faquant::kTile == 0, "split must be a multiple of a tile.");
        const auto* numbers = reinterpret_cast<const int64_t*>(spans);
        const auto* tables = reinterpret_cast<const int64_t*>(block_tables);
        std::vector<faquant::Span> all;
        int64_t first = 0;
        for (int64_t i = 0; i < count; ++i) {
            const faquant::Span span = {first, numbers[2 * i], numbers[2 * i + 1], tables + i * width};
            const int64_t size = cache_.page_size;
            require(span.tokens > 0 && span.start >= 0, "A span must have tokens, and start at 0 or behind it.");
            require(span.tokens <= width * size && span.start <= width * size - span.tokens,
                    "A span's block_table is too short.");
            const int64_t end = span.start + span.tokens;
            const int64_t oldest = window && *window < span.start + 1 ? span.start - *window + 1 : 0;
            for (int64_t page = oldest / size; page * size < end; ++page) {
                require(span.block_table[page] >= 0 && span.block_table[page] < cache_.pages,
                        "A page is not in the cache.");
            }
            first += span.tokens;
            all.push_back(span);
        }
        require(first == tokens, "The spans must have as many tokens as q.");
        const faquant::Attention attention = {&scheme_,
                                              &cache_,
                                              std::min(window.value_or(kNoWindow), kNoWindow),
                                              split,
                                              reinterpret_cast<const float*>(q),
                                              reinterpret_cast<float*>(out)};
        const faquant::KernelTable& table = kernels(isa);
        nb::gil_scoped_release unlocked;
        return faquant::attend(table, attention, all.data(), count, threads);
    }

  private:
    static uint16_t* halves(const WritableArray& array, const char* name, const std::vector<int64_t>& shape) {
        return reinterpret_cast<uint16_t*>(data_of<int16_t>(array, name, "int16 (a view of float16)", shape));
    }

    std::vector<OptionalArray> kept_;
    std::vector<std::optional<WritableArray>> stores_;
    faquant::Scheme scheme_{};
    faquant::Cache cache_{};
};

void pack_weight(const Array& weight, const WritableArray& packed, const WritableArray& excess) {
    require(weight.ndim() == 2, "weight must have two dimensions.");
    const int64_t n = static_cast<int64_t>(weight.shape(0)), k = static_cast<int64_t>(weight.shape(1));
    require(k <= faquant::kMaxDotLength, "A linear has too many inputs for exact sums.");
    const int8_t* from = data_of<const int8_t>(weight, "weight", "int8", {n, k});
    int8_t* to = data_of<int8_t>(packed, "packed", "int8", {faquant::padded_inputs(k) * faquant::padded_outputs(n)});
    int32_t* sums = data_of<int32_t>(excess, "excess", "int32", {n});
    nb::gil_scoped_release unlocked;
    faquant::pack_weight(from, n, k, to, sums);
}

// An int8 linear: all pointers are checked here, once.
class Linear {
  public:
    Linear(int64_t inputs, int64_t outputs, const Array& weight, const Array& excess, const Array& scale,
           const OptionalArray& bias, int64_t hadamard_block, const OptionalArray& input_scale,
           const OptionalArray& input_offset, const OptionalArray& quant_bias)
        : kept_{weight, excess, scale, bias, input_scale, input_offset, quant_bias} {
        require(inputs > 0 && outputs > 0 && inputs <= faquant::kMaxDotLength, "The linear has an impossible size.");
        require(hadamard_block >= 0 && (hadamard_block & (hadamard_block - 1)) == 0 &&
                    (hadamard_block == 0 || inputs % hadamard_block == 0),
                "hadamard_block must be a power of two that divides the inputs.");
        require(
            input_scale.has_value() == input_offset.has_value() && input_scale.has_value() == quant_bias.has_value(),
            "input_scale, input_offset and quant_bias go together.");
        require(!input_scale || (!bias && hadamard_block == 0), "A given input scale takes no bias and no rotation.");
        const int64_t size = faquant::padded_inputs(inputs) * faquant::padded_outputs(outputs);
        linear_ = {inputs,
                   outputs,
                   hadamard_block,
                   data_of<const int8_t>(weight, "weight", "int8", {size}),
                   data_of<const int32_t>(excess, "excess", "int32", {outputs}),
                   data_of<const float>(scale, "scale", "float32", {outputs}),
                   floats(bias, "bias", {outputs}),
                   floats(input_scale, "input_scale", {1}),
                   floats(input_offset, "input_offset", {1}),
                   quant_bias ? data_of<const int32_t>(*quant_bias, "quant_bias", "int32", {outputs}) : nullptr};
    }

    // x [rows, inputs] and out [rows, outputs] by address, checked in Python.
    void apply(uintptr_t x, uintptr_t out, int64_t rows, int64_t threads, const std::optional<std::string>& isa) const {
        const faquant::KernelTable& table = kernels(isa);
        nb::gil_scoped_release unlocked;
        faquant::apply(table, linear_, reinterpret_cast<const float*>(x), rows, reinterpret_cast<float*>(out), threads);
    }

  private:
    std::vector<OptionalArray> kept_;
    faquant::Linear linear_{};
};

// All arrays by address, checked in Python.
void rms_norm(uintptr_t x, uintptr_t weight, uintptr_t bias, float eps, int64_t rows, int64_t size, uintptr_t out,
              int64_t threads, const std::optional<std::string>& isa) {
    faquant::rms_norm(kernels(isa), reinterpret_cast<const float*>(x), reinterpret_cast<const float*>(weight),
                      reinterpret_cast<const float*>(bias), eps, rows, size, reinterpret_cast<float*>(out), threads);
}

void rope(uintptr_t x, uintptr_t cos, uintptr_t sin, int64_t tokens, int64_t heads, int64_t dim, int64_t threads,
          const std::optional<std::string>& isa) {
    faquant::rope(kernels(isa), reinterpret_cast<float*>(x), reinterpret_cast<const float*>(cos),
                  reinterpret_cast<const float*>(sin), tokens, heads, dim, threads);
}

void silu_times(uintptr_t gate, uintptr_t up, int64_t count, uintptr_t out, int64_t threads,
                const std::optional<std::string>& isa) {
    faquant::silu_times(kernels(isa), reinterpret_cast<const float*>(gate), reinterpret_cast<const float*>(up), count,
                        reinterpret_cast<float*>(out), threads);
}

uint64_t read_all(const Array& words, int64_t threads) {
    const auto* data = reinterpret_cast<const uint64_t*>(vector_data<int64_t>(words, "words", "int64"));
    nb::gil_scoped_release unlocked;
    return faquant::read_all(data, static_cast<int64_t>(words.shape(0)), threads);
}

nb::dict cpu_features() {
    const faquant::CpuFeatures f = faquant::detect_cpu_features();
    nb::dict d;
    d["avx2"] = f.avx2;
    d["fma"] = f.fma;
    d["f16c"] = f.f16c;
    d["avx_vnni"] = f.avx_vnni;
    d["avx512f"] = f.avx512f;
    d["avx512bw"] = f.avx512bw;
    d["avx512vl"] = f.avx512vl;
    d["avx512_vnni"] = f.avx512_vnni;
    d["avx512_bf16"] = f.avx512_bf16;
    d["amx_int8"] = f.amx_int8;
    return d;
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const faquant::KernelTable* table : faquant::available_kernels()) {
        names.emplace_back(table->name);
    }
    return names;
}

nb::dict self_test() {
    nb::dict results;
    for (const faquant::KernelTable* table : faquant::available_kernels()) {
        results[table->name] = faquant::first_wrong_kernel(*table) == nullptr;
    }
    return results;
}

}  // namespace

NB_MODULE(_C, m) {
    nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
        try {
            std::rethrow_exception(pointer);
        } catch (const faquant::UsageError& error) {
            PyErr_SetString(nb::module_::import_("faquant.errors").attr("UsageError").ptr(), error.what());
        }
    });

    m.attr("MAX_DOT_LENGTH") = faquant::kMaxDotLength;
    m.def("cpu_features", &cpu_features);
    m.def("cpu_brand", &faquant::cpu_brand);
    m.def("available_isas", &available_isas);
    m.def("selected_isa", [] { return faquant::selected_kernels().kernels->name; });
    m.def("selection_warning", [] { return faquant::selected_kernels().warning; });
    m.def("self_test", &self_test);
    m.def("self_test_notices_saturation", &faquant::self_test_notices_saturation,
          nb::call_guard<nb::gil_scoped_release>());
    m.def("dot_u8s8", &dot_u8s8, "a"_a, "b"_a, "isa"_a = nb::none());
    m.def("dot_s8s8", &dot_s8s8, "a"_a, "b"_a, "isa"_a = nb::none());
    m.attr("TILE") = faquant::kTile;
    m.attr("MAX_HEAD_DIM") = faquant::kMaxHeadDim;
    m.attr("PADDING") = faquant::kPadding;
    m.attr("PANEL") = faquant::kPanel;
    m.def("read_all", &read_all, "words"_a, nb::kw_only(), "threads"_a);
    const nb::call_guard<nb::gil_scoped_release> unlocked;
    m.def("rms_norm", &rms_norm, "x"_a, "weight"_a, "bias"_a, "eps"_a, "rows"_a, "size"_a, "out"_a, "threads"_a,
          "isa"_a.none(), unlocked);
    m.def("rope", &rope, "x"_a, "cos"_a, "sin"_a, "tokens"_a, "heads"_a, "dim"_a, "threads"_a, "isa"_a.none(),
          unlocked);
    m.def("silu_times", &silu_times, "gate"_a, "up"_a, "count"_a, "out"_a, "threads"_a, "isa"_a.none(), unlocked);
    m.def("pack_weight", &pack_weight, "weight"_a, "packed"_a, "excess"_a);
    nb::class_<Linear>(m, "Linear")
        .def(nb::init<int64_t, int64_t, const Array&, const Array&, const Array&, const OptionalArray&, int64_t,
                      const OptionalArray&, const OptionalArray&, const OptionalArray&>(),
             nb::kw_only(), "inputs"_a, "outputs"_a, "weight"_a, "excess"_a, "scale"_a, "bias"_a.none(),
             "hadamard_block"_a, "input_scale"_a.none(), "input_offset"_a.none(), "quant_bias"_a.none())
        .def("apply", &Linear::apply, "x"_a, "out"_a, "rows"_a, "threads"_a, "isa"_a.none());
    nb::class_<LayerCache>(m, "LayerCache")
        .def(nb::init<int64_t, const WritableArray&, const WritableArray&, const std::optional<WritableArray>&,
                      const std::optional<WritableArray>&, int64_t, int64_t, const OptionalArray&, const OptionalArray&,
                      int64_t, const OptionalArray&, int64_t, const OptionalArray&, bool, const OptionalArray&, bool,
                      const OptionalArray&, const OptionalArray&, const OptionalArray&, int32_t, bool>(),
             nb::kw_only(), "heads"_a, "k"_a, "v"_a, "k_scales"_a.none(), "v_scales"_a.none(), "dim"_a, "map_block"_a,
             "k_center"_a.none(), "k_equalizer"_a.none(), "rotation_block"_a, "rotation_sign"_a.none(),
             "v_rotation_block"_a, "q_scale"_a.none(), "q_by_channel"_a, "k_scale"_a.none(), "k_by_channel"_a,
             "k_offset"_a.none(), "v_scale"_a.none(), "v_offset"_a.none(), "p_levels"_a, "quantized_sum"_a)
        .def("append", &LayerCache::append, "k"_a, "v"_a, "slots"_a, "positions"_a, "tokens"_a, "threads"_a,
             "isa"_a.none())
        .def("attend", &LayerCache::attend, "out"_a, "q"_a, "tokens"_a, "spans"_a, "block_tables"_a, "count"_a,
             "width"_a, "window"_a.none(), "split"_a, "threads"_a, "isa"_a.none());
}
