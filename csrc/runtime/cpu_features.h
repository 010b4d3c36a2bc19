#pragma once

#include <string>

namespace faquant {

// What the CPU has and the operating system saves on a context switch; all false where the CPU is no x86-64.
struct CpuFeatures {
    bool avx2 = false;
    bool fma = false;
    bool f16c = false;
    bool avx_vnni = false;
    bool avx512f = false;
    bool avx512bw = false;
    bool avx512vl = false;
    bool avx512_vnni = false;
    bool avx512_bf16 = false;
    bool amx_int8 = false;
};

CpuFeatures detect_cpu_features();

// The brand string, such as "Intel(R) Xeon(R) Platinum 8380 CPU @ 2.30GHz"; empty where the CPU tells none.
std::string cpu_brand();

}  // namespace faquant
