#pragma once

#include <cstdint>

namespace faquant {

// Rounds a panel of weights in units of their scales, input by input: input j of an output becomes the integer nearest
// to targets[j] + Σ_{i<j} errors[i] · coefficients[j, i], from -127 to 127, and errors[j] = steps[j] minus that
// integer. targets, steps, rounded and errors are [outputs, inputs], coefficients [inputs, inputs]. Sums are float32,
// with i ascending and a rounding after each operation; the target is added last.
void compensate(const float* targets, const float* steps, const float* coefficients, int64_t outputs, int64_t inputs,
                int8_t* rounded, float* errors);

}  // namespace faquant
