#pragma once

#include <vector>

#include "ops/compensate.h"
#include "python/arrays.h"

// targets, steps and errors float32 [outputs, inputs], coefficients float32 [inputs, inputs], rounded int8 [outputs,
// inputs]
inline void compensate(const Array& targets, const Array& steps, const Array& coefficients,
                       const WritableArray& rounded, const WritableArray& errors) {
    const std::vector<int64_t> shape = shape_of(targets, "targets", 2);
    const auto* from = data_of<const float>(targets, "targets", "float32", shape);
    const auto* exact = data_of<const float>(steps, "steps", "float32", shape);
    const auto* factors = data_of<const float>(coefficients, "coefficients", "float32", {shape[1], shape[1]});
    auto* to = data_of<int8_t>(rounded, "rounded", "int8", shape);
    auto* left = data_of<float>(errors, "errors", "float32", shape);
    nb::gil_scoped_release unlocked;
    faquant::compensate(from, exact, factors, shape[0], shape[1], to, left);
}
