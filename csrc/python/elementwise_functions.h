#pragma once

#include <nanobind/stl/string.h>

#include <optional>
#include <string>

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

    // x and out [rows, size] by address, checked in Python.
    void apply(uintptr_t x, uintptr_t out, int64_t rows, int64_t threads, const std::optional<std::string>& isa) const {
        const faquant::KernelTable& table = kernels(isa);
        nb::gil_scoped_release unlocked;
        faquant::rms_norm(table, norm_, reinterpret_cast<const float*>(x), rows, size_, reinterpret_cast<float*>(out),
                          threads);
    }

    const faquant::Norm& norm() const { return norm_; }
    int64_t size() const { return size_; }

    static void bind(nb::module_& m) {
        using namespace nb::literals;
        nb::class_<RmsNorm>(m, "RmsNorm")
            .def(nb::init<const Array&, const OptionalArray&, float>(), nb::kw_only(), "weight"_a, "bias"_a.none(),
                 "eps"_a)
            .def_prop_ro("size", &RmsNorm::size)
            .def("apply", &RmsNorm::apply, "x"_a, "out"_a, "rows"_a, "threads"_a, "isa"_a.none());
    }

  private:
    std::vector<OptionalArray> kept_;
    faquant::Norm norm_{};
    int64_t size_;
};

// All arrays by address, checked in Python.
inline void rope(uintptr_t x, uintptr_t cos, uintptr_t sin, int64_t tokens, int64_t heads, int64_t dim, int64_t threads,
                 const std::optional<std::string>& isa) {
    faquant::rope(kernels(isa), reinterpret_cast<float*>(x), reinterpret_cast<const float*>(cos),
                  reinterpret_cast<const float*>(sin), tokens, heads, dim, threads);
}

inline void silu_times(uintptr_t gate, uintptr_t up, int64_t count, uintptr_t out, int64_t threads,
                       const std::optional<std::string>& isa) {
    faquant::silu_times(kernels(isa), reinterpret_cast<const float*>(gate), reinterpret_cast<const float*>(up), count,
                        reinterpret_cast<float*>(out), threads);
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
