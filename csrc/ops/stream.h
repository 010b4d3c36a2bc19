#pragma once

#include <cstdint>

namespace faquant {

// Read `count` words with up to `threads` threads and combine them, to measure memory bandwidth.
uint64_t read_all(const uint64_t* words, int64_t count, int64_t threads);

}  // namespace faquant
