#pragma once

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <string>
#include <vector>

#include "ops/linear.h"
#include "python/arrays.h"

inline bool is_of_bits(const Array& array) {
    return array.dtype() == nb::dtype<uint16_t>();
}

inline int64_t packed_floats(int64_t inputs, int64_t outputs, bool is_bfloat16) {
    return (is_bfloat16 ? (inputs + 1) / 2 * 2 : inputs) * faquant::padded_outputs(outputs);
}

// weight [outputs, inputs] float32, or uint16 for the bits of bfloat16; packed of the same type.
inline void pack_float_weight(const Array& weight, const WritableArray& packed, int64_t threads) {
    require(weight.ndim() == 2, "weight must have two dimensions.");
    const int64_t n = static_cast<int64_t>(weight.shape(0)), k = static_cast<int64_t>(weight.shape(1));
    const bool is_bfloat16 = is_of_bits(weight);
    const std::vector<int64_t> size = {packed_floats(k, n, is_bfloat16)};
    const void* from;
    void* to;
    if (is_bfloat16) {
        from = data_of<const uint16_t>(weight, "weight", "uint16", {n, k});
        to = data_of<uint16_t>(packed, "packed", "uint16", size);
    } else {
        from = data_of<const float>(weight, "weight", "float32 or uint16", {n, k});
        to = data_of<float>(packed, "packed", "float32", size);
    }
    nb::gil_scoped_release unlocked;
    faquant::pack_float_weight(from, is_bfloat16, n, k, to, threads_of(threads));
}

// A float linear; all pointers to its weights are checked once, here.
class FloatLinear {
  public:
    FloatLinear(int64_t inputs, int64_t outputs, const Array& weight, const OptionalArray& bias)
        : weight_(weight), bias_(bias) {
        require(inputs > 0 && outputs > 0, "The linear has an impossible size.");
        const bool is_bfloat16 = is_of_bits(weight);
        const std::vector<int64_t> size = {packed_floats(inputs, outputs, is_bfloat16)};
        linear_.inputs = inputs;
        linear_.outputs = outputs;
        if (is_bfloat16) {
            linear_.bfloat16_weight = data_of<const uint16_t>(weight, "weight", "uint16", size);
        } else {
            linear_.weight = data_of<const float>(weight, "weight", "float32 or uint16", size);
        }
        linear_.bias = floats(bias, "bias", {outputs});
    }

    // x [rows, inputs], out [rows, outputs]
    void apply(const Array& x, const WritableArray& out, int64_t threads, const std::optional<std::string>& isa) const {
        const int64_t rows = x.ndim() == 2 ? static_cast<int64_t>(x.shape(0)) : 0;
        const float* from = data_of<const float>(x, "x", "float32", {rows, linear_.inputs});
        float* to = data_of<float>(out, "out", "float32", {rows, linear_.outputs});
        const faquant::KernelTable& table = kernels(isa);
        nb::gil_scoped_release unlocked;
        faquant::apply(table, linear_, from, rows, to, threads_of(threads));
    }

    static void bind(nb::module_& m) {
        using namespace nb::literals;
        nb::class_<FloatLinear>(m, "FloatLinear")
            .def(nb::init<int64_t, int64_t, const Array&, const OptionalArray&>(), nb::kw_only(), "inputs"_a,
                 "outputs"_a, "weight"_a, "bias"_a.none())
            .def_prop_ro("inputs", [](const FloatLinear& self) { return self.linear_.inputs; })
            .def_prop_ro("outputs", [](const FloatLinear& self) { return self.linear_.outputs; })
            .def("apply", &FloatLinear::apply, "x"_a, "out"_a, "threads"_a, "isa"_a = nb::none());
    }

  private:
    Array weight_;
    OptionalArray bias_;
    faquant::FloatLinear linear_{};
};
