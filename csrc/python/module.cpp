#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/stream.h"
#include "python/arrays.h"
#include "python/convert_functions.h"
#include "python/decoder_layers.h"
#include "python/draw_functions.h"
#include "python/elementwise_functions.h"
#include "python/float_cache.h"
#include "python/float_linear.h"
#include "python/int8_linear.h"
#include "python/layer_cache.h"
#include "python/quantizing_functions.h"
#include "runtime/cpu_features.h"
#include "runtime/dispatch.h"
#include "self_test/self_test.h"

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

uint64_t read_all(const Array& words, int64_t threads) {
    const auto* data = reinterpret_cast<const uint64_t*>(vector_data<int64_t>(words, "words", "int64"));
    nb::gil_scoped_release unlocked;
    return faquant::read_all(data, static_cast<int64_t>(words.shape(0)), threads_of(threads));
}

nb::dict cpu_features() {
    const uint32_t found = faquant::detect_cpu_features();
    nb::dict d;
    for (const auto& [feature, name] : faquant::kCpuFeatures) {
        d[name] = (found & feature) != 0;
    }
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
    m.def("dot_u8s8", &dot_u8s8, "a"_a, "b"_a, "isa"_a = nb::none());
    m.def("dot_s8s8", &dot_s8s8, "a"_a, "b"_a, "isa"_a = nb::none());
    m.attr("TILE") = faquant::kTile;
    m.attr("MAX_HEAD_DIM") = faquant::kMaxHeadDim;
    m.attr("PADDING") = faquant::kPadding;
    m.attr("PANEL") = faquant::kPanel;
    m.def("set_threads", &faquant::set_threads, "threads"_a);
    m.def("read_all", &read_all, "words"_a, nb::kw_only(), "threads"_a);
    m.def("rope", &rope, "x"_a, "cos"_a, "sin"_a, "threads"_a, "isa"_a.none());
    m.def("rope_tables", &rope_tables, "frequencies"_a, "positions"_a, "scaling"_a, "cos"_a, "sin"_a);
    m.def("compensate", &compensate, "targets"_a, "steps"_a, "coefficients"_a, "rounded"_a, "errors"_a);
    m.def("silu_times", &silu_times, "gate"_a, "up"_a, "out"_a, "threads"_a, "isa"_a.none());
    m.def("gelu_times", &gelu_times, "gate"_a, "up"_a, "out"_a, "threads"_a, "isa"_a.none());
    m.def("pack_weight", &pack_weight, "weight"_a, "packed"_a, "totals"_a, "threads"_a);
    m.def("pack_float_weight", &pack_float_weight, "weight"_a, "packed"_a, "threads"_a);
    m.def("widen_bfloat16", &widen_array<faquant::widen_bfloat16>, "source"_a, "target"_a, "threads"_a);
    m.def("widen_float16", &widen_array<faquant::widen_float16>, "source"_a, "target"_a, "threads"_a);
    m.def("draw", &draw, "scores"_a, "is_wide"_a, "vocab"_a, "rows"_a, "draws"_a, "threads"_a, "isa"_a.none());
    m.def("distribution", &distribution, "scores"_a, "is_wide"_a, "vocab"_a, "sampling"_a, "isa"_a.none());
    m.def("likeliest", &likeliest, "scores"_a, "is_wide"_a, "vocab"_a, "counts"_a, "threads"_a, "isa"_a.none());
    RmsNorm::bind(m);
    Int8Linear::bind(m);
    FloatLinear::bind(m);
    LayerCache::bind(m);
    FloatCache::bind(m);
    DecoderLayers::bind(m);
}
