// 256-bit vectors with vpdpbusd, for CPUs that have it without AVX512. Compiled twice: in the VEX encoding for those
// CPUs, and in AVX512's encoding, so that it can be tested on others.
#define FAQUANT_UNIT
#include <immintrin.h>

#include "isa/kernels.h"

#ifdef FAQUANT_EVEX
#define FAQUANT_VPDPBUSD "%{evex%} vpdpbusd"
#define FAQUANT_TABLE kAvxVnniEvexKernels
#define FAQUANT_NAME "avxvnni-evex"
#define FAQUANT_FEATURES (kAvx512F | kAvx512Bw | kAvx512Vl | kAvx512Vnni)
#else
#define FAQUANT_VPDPBUSD "%{vex%} vpdpbusd"
#define FAQUANT_TABLE kAvxVnniKernels
#define FAQUANT_NAME "avxvnni"
#define FAQUANT_FEATURES kAvxVnni
#endif

namespace faquant {
namespace {

#include "generic/numbers-inl.h"

using Vector = __m256i;

Vector load(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

void store(int32_t* to, Vector x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x);
}

Vector in_all_lanes(int32_t x) {
    return _mm256_set1_epi32(x);
}

// sum += a · b, four bytes in each lane.
__attribute__((always_inline)) inline Vector add_products(Vector sum, Vector unsigned_a, Vector signed_b) {
    __asm__(FAQUANT_VPDPBUSD " %2, %1, %0" : "+x"(sum) : "x"(unsigned_a), "x"(signed_b));
    return sum;
}

#define FAQUANT_REGISTER(x) "+x"(x)

#include "isa/floats_256-inl.h"

int32_t sum_of(Vector x) {
    int32_t lanes[8], sum = 0;
    store(lanes, x);
    for (const int32_t lane : lanes) {
        sum += lane;
    }
    return sum;
}

int32_t dot_u8s8(const uint8_t* a, const int8_t* b, int64_t n) {
    Vector sums = in_all_lanes(0);
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        sums = add_products(sums, load(a + i), load(b + i));
    }
    return sum_of(sums) + plain_dot(a + i, b + i, n - i);
}

// The first factor of vpdpbusd is unsigned: a·b = (a + 128)·b − 128·b.
int32_t dot_s8s8(const int8_t* a, const int8_t* b, int64_t n) {
    const Vector offset = _mm256_set1_epi8(static_cast<char>(0x80));
    Vector sums = in_all_lanes(0), excess = in_all_lanes(0);
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        const Vector y = load(b + i);
        sums = add_products(sums, _mm256_xor_si256(load(a + i), offset), y);
        excess = add_products(excess, offset, y);
    }
    return sum_of(_mm256_sub_epi32(sums, excess)) + plain_dot(a + i, b + i, n - i);
}

constexpr int64_t kColumns = 8;
constexpr int kMostBlocks = 2, kMostFloatBlocks = 2;

#include "generic/multiply_floats-inl.h"
#include "generic/multiply_vnni-inl.h"
#include "generic/table-inl.h"

}  // namespace

constexpr KernelTable FAQUANT_TABLE = table_of(FAQUANT_NAME, kAvx2 | kFma | kF16c | FAQUANT_FEATURES);

}  // namespace faquant
