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

constexpr int64_t kLanes = 1;
constexpr int kMostPanels = 1;

// Compilers turn a sum of products of two int16 into the machine's instruction for it, if it has one.
template <int panels>
void multiply_panels(const int16_t* a, int64_t a_stride, const int16_t* b, int64_t depth, int32_t* c,
                     int64_t c_stride) {
    static_assert(panels == 1);
    int32_t sums[4] = {};
    for (int64_t i = 0; i < depth; ++i) {
        for (int r = 0; r < 4; ++r) {
            sums[r] += static_cast<int32_t>(a[r * a_stride + i]) * static_cast<int32_t>(b[i]);
        }
    }
    for (int r = 0; r < 4; ++r) {
        c[r * c_stride] = sums[r];
    }
}

#include "attend_rows.h"

}  // namespace

const KernelTable kPortableKernels = {"portable", dot_u8s8, dot_s8s8, attend_rows};

}  // namespace faquant
