#include <cmath>
#include <cstddef>
#include <cstring>
#include <vector>

#include "ops/linear.h"
#include "self_test/parts.h"

namespace faquant {
namespace {

// Numbers of all magnitudes within some powers of two, with all bits of float32 or bfloat16.
std::vector<float> rough_numbers(Random& random, int64_t count, uint32_t mask) {
    std::vector<float> numbers;
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits = 0;
        for (int byte = 0; byte < 4; ++byte) {
            bits = bits << 8 | random.next();
        }
        bits = ((bits & 0x87ffffffu) | 0x38000000u) & mask;
        float number;
        std::memcpy(&number, &bits, sizeof number);
        numbers.push_back(number);
    }
    return numbers;
}

}  // namespace

const char* wrong_kernel_in_float_linears(const KernelTable& table) {
    // Odd, and more than one part of a panel for this many rows.
    constexpr int64_t kRows = 11, kInputs = 261, kOutputs = 70;
    Random random;
    const auto x = rough_numbers(random, kRows * kInputs, ~0u);
    const auto bias = rough_numbers(random, kOutputs, ~0u);
    for (const bool is_bfloat16 : {false, true}) {
        const auto weight = rough_numbers(random, kOutputs * kInputs, is_bfloat16 ? 0xffff0000u : ~0u);
        std::vector<float> packed(kInputs * padded_outputs(kOutputs));
        std::vector<uint16_t> halves, packed_halves((kInputs + 1) * padded_outputs(kOutputs));
        for (const float number : weight) {
            uint32_t bits;
            std::memcpy(&bits, &number, sizeof bits);
            halves.push_back(static_cast<uint16_t>(bits >> 16));
        }
        FloatLinear linear{kInputs, kOutputs, nullptr, nullptr, bias.data()};
        if (is_bfloat16) {
            pack_float_weight(halves.data(), true, kOutputs, kInputs, packed_halves.data(), 1);
            linear.bfloat16_weight = packed_halves.data();
        } else {
            pack_float_weight(weight.data(), false, kOutputs, kInputs, packed.data(), 1);
            linear.weight = packed.data();
        }
        std::vector<double> exact;
        for (int64_t i = 0; i < kRows * kOutputs; ++i) {
            const float *row = x.data() + i / kOutputs * kInputs, *column = weight.data() + i % kOutputs * kInputs;
            float sum = 0.0f;
            for (int64_t k = 0; k < kInputs; ++k) {
                sum = std::fma(row[k], column[k], sum);
            }
            exact.push_back(sum + bias[static_cast<size_t>(i % kOutputs)]);
        }
        const auto run = [&](const KernelTable& kernels) {
            std::vector<float> out(kRows * kOutputs);
            apply(kernels, linear, x.data(), kRows, out.data(), 1);
            return out;
        };
        if (const char* kernel = wrong_kernel_in(table, "float_panels", run, exact, 0)) {
            return kernel;
        }
    }
    return nullptr;
}

}  // namespace faquant
