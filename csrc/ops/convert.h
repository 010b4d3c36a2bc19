#pragma once

#include <cstdint>

namespace faquant {

// Converts `count` 16-bit numbers, at any address, exactly to float32, including subnormal numbers, infinities and the
// payload of NaN.
void widen_bfloat16(const void* source, int64_t count, float* target, int64_t threads);
void widen_float16(const void* source, int64_t count, float* target, int64_t threads);

}  // namespace faquant
