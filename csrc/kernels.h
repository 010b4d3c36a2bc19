#pragma once

#include <cstdint>

namespace faquant {

// A dot product of this many full-range 8-bit values is the longest that is sure to fit into int32.
constexpr int64_t kMaxDotLength = 65536;

// What one instruction set offers. Every function gives the same integers in every table.
//
// The units that fill these tables are compiled with flags of their own. They use no std templates and no inline
// functions: the linker keeps one copy of those, and if it kept theirs, it would run on CPUs that cannot.
struct KernelTable {
    const char* name;
    // sum of a[i]·b[i], exact for n <= kMaxDotLength; no alignment needed, nothing outside [0, n) is read
    int32_t (*dot_u8s8)(const uint8_t* a, const int8_t* b, int64_t n);
    int32_t (*dot_s8s8)(const int8_t* a, const int8_t* b, int64_t n);
};

extern const KernelTable kPortableKernels;
#ifdef FAQUANT_X86
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512VnniKernels;
#endif

}  // namespace faquant
