#include "kernels.h"

namespace faquant {
namespace {

int32_t dot_u8s8(const uint8_t* a, const int8_t* b, int64_t n) {
    int32_t sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        sum += static_cast<int32_t>(a[i]) * static_cast<int32_t>(b[i]);
    }
    return sum;
}

int32_t dot_s8s8(const int8_t* a, const int8_t* b, int64_t n) {
    int32_t sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        sum += static_cast<int32_t>(a[i]) * static_cast<int32_t>(b[i]);
    }
    return sum;
}

}  // namespace

const KernelTable kPortableKernels = {"portable", dot_u8s8, dot_s8s8};

}  // namespace faquant
