#pragma once

#include <nanobind/stl/string.h>

#include <optional>
#include <string>
#include <vector>

#include "ops/linear.h"
#include "python/arrays.h"

inline void pack_weight(const Array& weight, const WritableArray& packed, const WritableArray& totals,
                        int64_t threads) {
    require(weight.ndim() == 2, "weight must have two dimensions.");
    const int64_t n = static_cast<int64_t>(weight.shape(0)), k = static_cast<int64_t>(weight.shape(1));
    require(k <= faquant::kMaxDotLength, "A linear has too many inputs for exact sums.");
    const int8_t* from = data_of<const int8_t>(weight, "weight", "int8", {n, k});
    int8_t* to = data_of<int8_t>(packed, "packed", "int8", {faquant::padded_inputs(k) * faquant::padded_outputs(n)});
    int32_t* sums = data_of<int32_t>(totals, "totals", "int32", {n});
    nb::gil_scoped_release unlocked;
    faquant::pack_weight(from, n, k, to, sums, threads_of(threads));
}

// An int8 linear; all pointers are checked once, here.
class Int8Linear {
  public:
    Int8Linear(int64_t inputs, int64_t outputs, const Array& weight, const Array& totals, const Array& scale,
               const OptionalArray& bias, int64_t hadamard_block, const OptionalArray& input_scale,
               const OptionalArray& input_offset, const OptionalArray& quant_bias,
               const OptionalArray& input_multiplier, float input_steps)
        : kept_{weight, totals, scale, bias, input_scale, input_offset, quant_bias, input_multiplier} {
        require(inputs > 0 && outputs > 0 && inputs <= faquant::kMaxDotLength, "The linear has an impossible size.");
        require(hadamard_block >= 0 && (hadamard_block & (hadamard_block - 1)) == 0 &&
                    (hadamard_block == 0 || inputs % hadamard_block == 0),
                "hadamard_block must be a power of two that divides the inputs.");
        require(
            input_scale.has_value() == input_offset.has_value() && input_scale.has_value() == quant_bias.has_value(),
            "input_scale, input_offset and quant_bias must be given together.");
        require(!input_scale || (!bias && hadamard_block == 0),
                "input_scale cannot be combined with bias or hadamard_block.");
        require(input_steps == 127.0f || input_steps == 127.5f || input_steps == faquant::kAsymmetricSteps ||
                    input_steps == faquant::kWideSteps,
                "input_steps must be 127, 127.5, 255 for zero points, or 32639 for inputs of 16 bits.");
        const int64_t size = faquant::padded_inputs(inputs) * faquant::padded_outputs(outputs);
        linear_ = {inputs,
                   outputs,
                   input_steps,
                   floats(input_multiplier, "input_multiplier", {inputs}),
                   hadamard_block,
                   data_of<const int8_t>(weight, "weight", "int8", {size}),
                   data_of<const int32_t>(totals, "totals", "int32", {outputs}),
                   data_of<const float>(scale, "scale", "float32", {outputs}),
                   floats(bias, "bias", {outputs}),
                   floats(input_scale, "input_scale", {1}),
                   floats(input_offset, "input_offset", {1}),
                   quant_bias ? data_of<const int32_t>(*quant_bias, "quant_bias", "int32", {outputs}) : nullptr};
    }

    // x [rows, inputs] and out [rows, outputs].
    void apply(const Array& x, const WritableArray& out, int64_t threads, const std::optional<std::string>& isa) const {
        const int64_t rows = shape_of(x, "x", 2)[0];
        const auto* from = data_of<const float>(x, "x", "float32", {rows, linear_.inputs});
        auto* to = data_of<float>(out, "out", "float32", {rows, linear_.outputs});
        const faquant::KernelTable& table = kernels(isa);
        nb::gil_scoped_release unlocked;
        const faquant::Product product = {&linear_, to, false};
        faquant::apply(table, {from, rows, {}}, &product, 1, threads_of(threads));
    }

    const faquant::Linear& linear() const { return linear_; }

    static void bind(nb::module_& m) {
        using namespace nb::literals;
        nb::class_<Int8Linear>(m, "Int8Linear")
            .def(nb::init<int64_t, int64_t, const Array&, const Array&, const Array&, const OptionalArray&, int64_t,
                          const OptionalArray&, const OptionalArray&, const OptionalArray&, const OptionalArray&,
                          float>(),
                 nb::kw_only(), "inputs"_a, "outputs"_a, "weight"_a, "totals"_a, "scale"_a, "bias"_a.none(),
                 "hadamard_block"_a, "input_scale"_a.none(), "input_offset"_a.none(), "quant_bias"_a.none(),
                 "input_multiplier"_a.none(), "input_steps"_a)
            .def("apply", &Int8Linear::apply, "x"_a, "out"_a, "threads"_a, "isa"_a.none());
    }

  private:
    std::vector<OptionalArray> kept_;
    faquant::Linear linear_{};
};
