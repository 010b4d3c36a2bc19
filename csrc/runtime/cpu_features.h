#pragma once

#include <cstdint>
#include <string>

#include "isa/cpu_feature.h"

namespace faquant {

struct NamedCpuFeature {
    CpuFeature feature;
    const char* name;
};

// Each CpuFeature.
constexpr NamedCpuFeature kCpuFeatures[] = {
    {kAvx2, "avx2"},
    {kFma, "fma"},
    {kF16c, "f16c"},
    {kAvxVnni, "avx_vnni"},
    {kAvx512F, "avx512f"},
    {kAvx512Bw, "avx512bw"},
    {kAvx512Vl, "avx512vl"},
    {kAvx512Vnni, "avx512_vnni"},
    {kAvx512Bf16, "avx512_bf16"},
    {kAmxInt8, "amx_int8"},
    {kAmxPermitted, "amx_permitted"},
    {kAsimdDp, "asimddp"},
    {kI8mm, "i8mm"},
};

// The features that the CPU has and whose registers the operating system saves on a context switch; 0 on CPUs other
// than x86-64 and AArch64. On CPUs with AMX it asks Linux for the permission to use tiles, for all threads of the
// process and its forks, from then on.
uint32_t detect_cpu_features();

// The brand string, such as "Intel(R) Xeon(R) Platinum 8380 CPU @ 2.30GHz"; empty if the CPU has none.
std::string cpu_brand();

}  // namespace faquant
