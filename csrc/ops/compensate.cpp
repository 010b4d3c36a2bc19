#include "ops/compensate.h"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace faquant {
namespace {

// Outputs that are computed side by side, in vector registers.
constexpr int64_t kTogether = 16;
// Adding and subtracting it rounds numbers below 2^22 to integers, halves to even.
constexpr float kRounder = 0x1.8p23f;

}  // namespace

void compensate(const float* targets, const float* steps, const float* coefficients, int64_t outputs, int64_t inputs,
                int8_t* rounded, float* errors) {
    std::vector<float> columns(static_cast<size_t>(inputs * kTogether));
    for (int64_t first = 0; first < outputs; first += kTogether) {
        const int64_t count = std::min(kTogether, outputs - first);
        for (int64_t j = 0; j < inputs; ++j) {
            float sums[kTogether] = {}, exact[kTogether] = {};
            for (int64_t c = 0; c < count; ++c) {
                sums[c] = targets[(first + c) * inputs + j];
                exact[c] = steps[(first + c) * inputs + j];
            }
            const float* row = coefficients + j * inputs;
            for (int64_t i = 0; i < j; ++i) {
                const float* before = columns.data() + i * kTogether;
                for (int64_t c = 0; c < kTogether; ++c) {
                    sums[c] += before[c] * row[i];
                }
            }
            float* now = columns.data() + j * kTogether;
            for (int64_t c = 0; c < kTogether; ++c) {
                sums[c] = (std::min(std::max(sums[c], -127.0f), 127.0f) + kRounder) - kRounder;
                now[c] = exact[c] - sums[c];
            }
            for (int64_t c = 0; c < count; ++c) {
                rounded[(first + c) * inputs + j] = static_cast<int8_t>(sums[c]);
                errors[(first + c) * inputs + j] = now[c];
            }
        }
    }
}

}  // namespace faquant
