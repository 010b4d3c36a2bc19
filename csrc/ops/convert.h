#pragma once

#include <cstdint>

namespace faquant {

// `count` numbers of 16 bits, at any address, as float32, exactly: also subnormal ones, infinities and what a NaN
// holds.
void widen_bfloat16(const void* source, int64_t count, float* target, int64_t threads);
void widen_float16(const void* source, int64_t count, float* target, int64_t threads);

}  // namespace faquant
