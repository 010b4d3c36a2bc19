#pragma once

#include <nanobind/stl/string.h>

#include <optional>
#include <string>
#include <vector>

#include "ops/elementwise.h"
#include "ops/rope_tables.h"
#include "python/arrays.h"

// A norm's weights, checked once.
class RmsNorm {
  public:
    RmsNorm(const Array& weight, const OptionalArray& bias, float eps) : kept_{weight, bias} {
        size_ = static_cast<int64_t>(weight.ndim() == 1 ? weight.shape(0) : 0);
        require(size_ > 0, "weight must have one dimension.");
        norm_ = {data_of<const float>(weight, "weight", "float32", {size_}), floats(bias, "bias", {size_}), eps};
    }

    // x and out [..., size].
    void apply(const Array& x, const WritableArray& out, int64_t threads, const std::optional<std::string>& isa) const {
        std::vector<int64_t> shape = shape_of(x, "x", x.ndim());
        require(!shape.empty(), "x must have a dimension.");
        shape.back() = size_;
        int64_t rows = 1;
        for (size_t i = 0; i + 1 < shape.size(); ++i) {
            rows *= shape[i];
        }
        const auto* from = data_of<const float>(x, "x", "float32", shape);
        auto* to = data_of<float>(out, "out", "float32", shape);
        const faquant::KernelTable& table = kernels(isa);
        nb::gil_scoped_release unlocked;
        faquant::rms_norm(table, norm_, from, rows, size_, to, threads_of(threads));
    }

    const faquant::Norm& norm() const { return norm_; }
    int64_t size() const { return size_; }

    static void bind(nb::module_& m) {
        using namespace nb::literals;
        nb::class_<RmsNorm>(m, "RmsNorm")
            .def(nb::init<const Array&, const OptionalArray&, float>(), nb::kw_only(), "weight"_a, "bias"_a.none(),
                 "eps"_a)
            .def_prop_ro("size", &RmsNorm::size)
            .def("apply", &RmsNorm::apply, "x"_a, "out"_a, "threads"_a, "isa"_a.none());
    }

  private:
    std::vector<OptionalArray> kept_;
    faquant::Norm norm_{};
    int64_t size_;
};

// x [tokens, heads, dim], in place, by cos and sin [tokens, 1, dim].
inline void rope(const WritableArray& x, const Array& cos, const Array& sin, int64_t threads,
                 const std::optional<std::string>& isa) {
    const std::vector<int64_t> shape = shape_of(x, "x", 3);
    auto* states = data_of<float>(x, "x", "float32", shape);
    const std::vector<int64_t> of_tables = {shape[0], 1, shape[2]};
    const auto* c = data_of<const float>(cos, "cos", "float32", of_tables);
    const auto* s = data_of<const float>(sin, "sin", "float32", of_tables);
    const faquant::KernelTable& table = kernels(isa);
    nb::gil_scoped_release unlocked;
    faquant::rope(table, states, c, s, shape[0], shape[1], shape[2], threads_of(threads));
}

// gate, up and out have the same shape.
inline void gated(faquant::Activation activation, const Array& gate, const Array& up, const WritableArray& out,
                  int64_t threads, const std::optional<std::string>& isa) {
    const std::vector<int64_t> shape = shape_of(gate, "gate", gate.ndim());
    int64_t count = 1;
    for (const int64_t size : shape) {
        count *= size;
    }
    const auto* of_gate = data_of<const float>(gate, "gate", "float32", shape);
    const auto* of_up = data_of<const float>(up, "up", "float32", shape);
    auto* to = data_of<float>(out, "out", "float32", shape);
    const faquant::KernelTable& table = kernels(isa);
    nb::gil_scoped_release unlocked;
    faquant::gated(table, activation, of_gate, of_up, count, to, threads_of(threads));
}

inline void silu_times(const Array& gate, const Array& up, const WritableArray& out, int64_t threads,
                       const std::optional<std::string>& isa) {
    gated(faquant::Activation::kSilu, gate, up, out, threads, isa);
}

inline void gelu_times(const Array& gate, const Array& up, const WritableArray& out, int64_t threads,
                       const std::optional<std::string>& isa) {
    gated(faquant::Activation::kGelu, gate, up, out, threads, isa);
}

// frequencies float32 [dim / 2], positions int64 [tokens]; cos and sin float32 [tokens, dim]
inline void rope_tables(const Array& frequencies, const Array& positions, float scaling, const WritableArray& cos,
                        const WritableArray& sin) {
    require(frequencies.ndim() == 1 && positions.ndim() == 1, "frequencies and positions must have one dimension.");
    const int64_t count = static_cast<int64_t>(frequencies.shape(0)), tokens = static_cast<int64_t>(positions.shape(0));
    const auto* from = data_of<const float>(frequencies, "frequencies", "float32", {count});
    const auto* at = data_of<const int64_t>(positions, "positions", "int64", {tokens});
    auto* cosines = data_of<float>(cos, "cos", "float32", {tokens, 2 * count});
    auto* sines = data_of<float>(sin, "sin", "float32", {tokens, 2 * count});
    nb::gil_scoped_release unlocked;
    faquant::rope_tables(from, count, at, tokens, scaling, cosines, sines);
}
