#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "attend.h"
#include "cpu_features.h"
#include "dispatch.h"
#include "self_test.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;

template <typename T>
const T* vector_data(const Array& array, const char* name, const char* dtype) {
    if (array.dtype() != nb::dtype<T>() || array.ndim() != 1 || (array.shape(0) > 1 && array.stride(0) != 1)) {
        throw std::invalid_argument(std::string(name) + " must be a contiguous one-dimensional array of " + dtype +
                                    ".");
    }
    return static_cast<const T*>(array.data());
}

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

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text;
    for (const int64_t size : shape) {
        text += (text.empty() ? "" : ", ") + std::to_string(size);
    }
    return "[" + text + "]";
}

// The array's data after checks. A first dimension of at least `shape[0]` will do where `or_longer`.
template <typename T, typename AnyArray>
T* data_of(const AnyArray& array, const char* name, const char* dtype, const std::vector<int64_t>& shape,
           bool or_longer = false) {
    bool good = array.dtype() == nb::dtype<std::remove_const_t<T>>() && array.ndim() == shape.size();
    int64_t stride = 1;
    for (size_t i = shape.size(); good && i-- > 0;) {
        const int64_t size = static_cast<int64_t>(array.shape(i));
        good =
            (size == shape[i] || (or_longer && i == 0 && size > shape[i])) && (size <= 1 || array.stride(i) == stride);
        stride *= size;
    }
    if (!good) {
        throw std::invalid_argument(std::string(name) + " must be a contiguous array of " + dtype + " " +
                                    shape_text(shape) + (or_longer ? " or longer." : "."));
    }
    return static_cast<T*>(array.data());
}

const float* floats(const std::optional<Array>& array, const char* name, const std::vector<int64_t>& shape,
                    bool or_longer = false) {
    return array ? data_of<const float>(*array, name, "float32", shape, or_longer) : nullptr;
}

void require(bool condition, const char* message) {
    if (!condition) {
        throw std::invalid_argument(message);
    }
}

void attend(const nb::ndarray<nb::device::cpu>& out, const Array& q, const Array& q_scale, const Array& q_bias,
            const Array& k, const Array& v, const std::optional<Array>& k_scale, const std::optional<Array>& v_scale,
            const std::optional<Array>& v_step, const std::optional<Array>& v_offset, int64_t start,
            const std::optional<int64_t>& window, int64_t split, int64_t map_block, int32_t p_levels,
            bool quantized_sum, int64_t threads, const std::optional<std::string>& isa) {
    require(q.ndim() == 4 && k.ndim() == 3, "q must have four dimensions and k three.");
    faquant::Attention a{};
    a.maps = static_cast<int64_t>(q.shape(0));
    a.tokens = static_cast<int64_t>(q.shape(1));
    a.heads = static_cast<int64_t>(q.shape(2));
    a.dim = static_cast<int64_t>(q.shape(3));
    a.kv_heads = static_cast<int64_t>(k.shape(1));
    a.start = start;
    a.window = window.value_or(std::numeric_limits<int64_t>::max());
    a.split = split;
    a.map_block = map_block;
    a.p_levels = p_levels;
    a.quantized_sum = quantized_sum;
    require(a.kv_heads > 0 && a.heads % a.kv_heads == 0, "q's heads must be a multiple of k's.");
    require(a.dim > 0 && a.dim <= faquant::kMaxHeadDim, "A head must have 1 to 1024 channels.");
    require(start >= 0 && start <= static_cast<int64_t>(k.shape(0)) - a.tokens, "k must hold start + tokens keys.");
    require(a.window > 0, "window must be positive.");
    require(split > 0 && split % faquant::kTile == 0, "split must be a multiple of a tile.");
    require(a.maps > 0, "q must be given for one map at least.");
    require(map_block > 0 && map_block % faquant::kTile == 0, "map_block must be a multiple of a tile.");
    require(p_levels == 127 || p_levels == 255 || p_levels == 32767, "p_levels must be 127, 255 or 32767.");
    require(v_scale.has_value() != v_step.has_value(), "v_scale or v_step must be given, and not both.");
    require(v_step.has_value() || (!v_offset.has_value() && !quantized_sum), "v_offset and quantized_sum need v_step.");
    const int64_t end = start + a.tokens;
    a.q = data_of<const int8_t>(q, "q", "int8", {a.maps, a.tokens, a.heads, a.dim});
    a.q_scale = data_of<const float>(q_scale, "q_scale", "float32", {a.maps, a.tokens, a.heads});
    a.q_bias = data_of<const float>(q_bias, "q_bias", "float32", {a.maps, a.tokens, a.heads});
    a.k = data_of<const int8_t>(k, "k", "int8", {end, a.kv_heads, a.dim}, true);
    a.v = data_of<const int8_t>(v, "v", "int8", {end, a.kv_heads, a.dim}, true);
    a.k_scale = floats(k_scale, "k_scale", {end, a.kv_heads}, true);
    a.v_scale = floats(v_scale, "v_scale", {end, a.kv_heads}, true);
    a.v_step = floats(v_step, "v_step", {a.kv_heads, a.dim});
    a.v_offset = floats(v_offset, "v_offset", {a.kv_heads, a.dim});
    a.out = data_of<float>(out, "out", "float32", {a.tokens, a.heads, a.dim});
    const faquant::KernelTable& table = kernels(isa);
    nb::gil_scoped_release unlocked;
    faquant::attend(table, a, threads);
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
    m.def("attend", &attend, nb::kw_only(), "out"_a, "q"_a, "q_scale"_a, "q_bias"_a, "k"_a, "v"_a, "k_scale"_a.none(),
          "v_scale"_a.none(), "v_step"_a.none(), "v_offset"_a.none(), "start"_a, "window"_a.none(), "split"_a,
          "map_block"_a, "p_levels"_a, "quantized_sum"_a, "threads"_a, "isa"_a.none());
}
