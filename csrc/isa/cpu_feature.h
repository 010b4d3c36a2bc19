#pragma once

#include <cstdint>

namespace faquant {

// CPU features, one bit each; runtime/cpu_features.cpp detects them.
enum CpuFeature : uint32_t {
    kAvx2 = 1 << 0,
    kFma = 1 << 1,
    kF16c = 1 << 2,
    kAvxVnni = 1 << 3,
    kAvx512F = 1 << 4,
    kAvx512Bw = 1 << 5,
    kAvx512Vl = 1 << 6,
    kAvx512Vnni = 1 << 7,
    kAvx512Bf16 = 1 << 8,
    kAmxInt8 = 1 << 9,
    kAmxPermitted = 1 << 10,  // by the operating system, for this process
    // of AArch64
    kAsimdDp = 1 << 16,
    kI8mm = 1 << 17,
};

}  // namespace faquant
