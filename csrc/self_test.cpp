#include "self_test.h"

#include <algorithm>
#include <initializer_list>
#include <vector>

namespace faquant {
namespace {

constexpr int64_t kLengths[] = {0, 1, 63, 64, 65, 127, 128, 129, 1000};
constexpr int64_t kLongest = 1000;
// Operands start here, so that they are unaligned, and end this far before the end of their buffer.
constexpr int64_t kMargin = 65;
constexpr uint8_t kPoison = 0x7f;

struct Random {
    uint32_t state = 0x9e3779b9u;
    uint8_t next() {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        return static_cast<uint8_t>(state >> 24);
    }
};

template <typename A>
bool agrees(int32_t (*dot)(const A*, const int8_t*, int64_t), const std::vector<uint8_t>& a,
            const std::vector<uint8_t>& b, int64_t n) {
    const A* x = reinterpret_cast<const A*>(a.data() + kMargin);
    const int8_t* y = reinterpret_cast<const int8_t*>(b.data() + kMargin);
    int64_t sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        sum += static_cast<int64_t>(x[i]) * y[i];
    }
    return dot(x, y, n) == sum;
}

const char* first_wrong_kernel_on(const KernelTable& table, const std::vector<uint8_t>& a,
                                  const std::vector<uint8_t>& b, int64_t n) {
    if (!agrees(table.dot_u8s8, a, b, n)) {
        return "dot_u8s8";
    }
    if (!agrees(table.dot_s8s8, a, b, n)) {
        return "dot_s8s8";
    }
    return nullptr;
}

void fill(std::vector<uint8_t>& buffer, int64_t n, uint8_t even, uint8_t odd) {
    std::fill(buffer.begin(), buffer.end(), kPoison);
    for (int64_t i = 0; i < n; ++i) {
        buffer[static_cast<size_t>(kMargin + i)] = i % 2 == 0 ? even : odd;
    }
}

void fill(std::vector<uint8_t>& buffer, int64_t n, Random& random) {
    std::fill(buffer.begin(), buffer.end(), kPoison);
    for (int64_t i = 0; i < n; ++i) {
        buffer[static_cast<size_t>(kMargin + i)] = random.next();
    }
}

template <typename A>
int32_t saturating_dot(const A* a, const int8_t* b, int64_t n) {
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i += 2) {
        const int32_t pair = a[i] * b[i] + (i + 1 < n ? a[i + 1] * b[i + 1] : 0);
        sum += std::min(std::max(pair, -32768), 32767);
    }
    return sum;
}

}  // namespace

const char* first_wrong_kernel(const KernelTable& table) {
    std::vector<uint8_t> a(kLongest + 2 * kMargin), b(kLongest + 2 * kMargin);
    Random random;
    for (const int64_t n : kLengths) {
        // 0x80 is 128 or −128, 0x7f is 127, 0xff is 255 or −1.
        for (const uint8_t x : {0x00, 0x7f, 0x80, 0xff}) {
            for (const uint8_t even : {0x7f, 0x80, 0x81, 0xff}) {
                for (const uint8_t odd : {0x7f, 0x80}) {
                    fill(a, n, x, x);
                    fill(b, n, even, odd);
                    if (const char* name = first_wrong_kernel_on(table, a, b, n)) {
                        return name;
                    }
                }
            }
        }
        for (int round = 0; round < 4; ++round) {
            fill(a, n, random);
            fill(b, n, random);
            if (const char* name = first_wrong_kernel_on(table, a, b, n)) {
                return name;
            }
        }
    }
    return nullptr;
}

bool self_test_notices_saturation() {
    const KernelTable only_unsigned = {"", saturating_dot<uint8_t>, kPortableKernels.dot_s8s8};
    const KernelTable only_signed = {"", kPortableKernels.dot_u8s8, saturating_dot<int8_t>};
    return first_wrong_kernel(only_unsigned) != nullptr && first_wrong_kernel(only_signed) != nullptr;
}

}  // namespace faquant
