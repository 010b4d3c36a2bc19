#include <algorithm>
#include <cstdint>
#include <vector>

#include "self_test/parts.h"

namespace faquant {
namespace {

constexpr int64_t kLengths[] = {0, 1, 63, 64, 65, 127, 128, 129, 1000};
constexpr int64_t kLongest = 1000;
// Operands start at this offset, to be unaligned, and end this far before the end of their buffer.
constexpr int64_t kMargin = 65;
constexpr uint8_t kPoison = 0x7f;
// Fill bytes of the first and second operand. 0x80 is 128 or −128, 0x7f is 127, 0xff is 255 or −1.
constexpr uint8_t kFirst[] = {0x00, 0x7f, 0x80, 0xff}, kEven[] = {0x7f, 0x80, 0x81, 0xff}, kOdd[] = {0x7f, 0x80};

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

const char* first_wrong_dot(const KernelTable& table, const std::vector<uint8_t>& a, const std::vector<uint8_t>& b,
                            int64_t n) {
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

}  // namespace

const char* wrong_kernel_in_dots(const KernelTable& table) {
    std::vector<uint8_t> a(kLongest + 2 * kMargin), b(kLongest + 2 * kMargin);
    Random random;
    for (const int64_t n : kLengths) {
        for (const uint8_t x : kFirst) {
            for (const uint8_t even : kEven) {
                for (const uint8_t odd : kOdd) {
                    fill(a, n, x, x);
                    fill(b, n, even, odd);
                    if (const char* name = first_wrong_dot(table, a, b, n)) {
                        return name;
                    }
                }
            }
        }
        for (int round = 0; round < 4; ++round) {
            fill(a, n, random);
            fill(b, n, random);
            if (const char* name = first_wrong_dot(table, a, b, n)) {
                return name;
            }
        }
    }
    return nullptr;
}

}  // namespace faquant
