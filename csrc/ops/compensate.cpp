#include "ops/compensate.h"

#include <algorithm>
#include <cstddef>
#include <memory>

namespace faquant {
namespace {

// Outputs that are computed side by side, in four registers of every CPU. (GCC 12 keeps arrays of vectors in memory.)
constexpr int64_t kTogether = 16;
typedef float Four __attribute__((vector_size(16)));

// Adding and subtracting it rounds numbers below 2^22 to integers, halves to even.
constexpr float kRounder = 0x1.8p23f;

}  // namespace

void compensate(const float* targets, const float* steps, const float* coefficients, int64_t outputs, int64_t inputs,
                int8_t* rounded, float* errors) {
    // The errors of each input, [inputs, kTogether].
    const std::unique_ptr<Four[]> all_errors(new Four[static_cast<size_t>(inputs * kTogether / 4)]);
    for (int64_t first = 0; first < outputs; first += kTogether) {
        const int64_t count = std::min(kTogether, outputs - first);
        for (int64_t j = 0; j < inputs; ++j) {
            const float* row = coefficients + j * inputs;
            Four a = {}, b = {}, c = {}, d = {};
            const Four* before = all_errors.get();
            for (int64_t i = 0; i < j; ++i, before += 4) {
                a += before[0] * row[i];
                b += before[1] * row[i];
                c += before[2] * row[i];
                d += before[3] * row[i];
            }
            const Four sums[] = {a, b, c, d};
            Four* now = all_errors.get() + j * (kTogether / 4);
            for (int64_t o = 0; o < kTogether; ++o) {
                const int64_t at = (first + o) * inputs + j;
                float error = 0.0f;
                if (o < count) {
                    const float target = std::min(std::max(targets[at] + sums[o / 4][o % 4], -127.0f), 127.0f);
                    const float integer = (target + kRounder) - kRounder;
                    error = errors[at] = steps[at] - integer;
                    rounded[at] = static_cast<int8_t>(integer);
                }
                now[o / 4][o % 4] = error;
            }
        }
    }
}

}  // namespace faquant
