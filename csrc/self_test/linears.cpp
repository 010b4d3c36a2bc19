#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <numeric>
#include <vector>

#include "ops/linear.h"
#include "self_test/parts.h"

namespace faquant {
namespace {

// The definition, as a plain loop.
void exact_hadamard(double* x, int64_t size, int64_t block) {
    std::vector<double> rotated(static_cast<size_t>(block));
    for (int64_t start = 0; start < size; start += block) {
        for (int64_t i = 0; i < block; ++i) {
            double sum = 0;
            for (int64_t j = 0; j < block; ++j) {
                sum += __builtin_parityll(static_cast<unsigned long long>(i & j)) != 0 ? -x[start + j] : x[start + j];
            }
            rotated[static_cast<size_t>(i)] = sum / std::sqrt(static_cast<double>(block));
        }
        std::copy(rotated.begin(), rotated.end(), x + start);
    }
}

double rounded_sum(double a, double b) {
    return static_cast<float>(a + b);
}

// The outputs of `rows` rows of x. Sums are rounded to float32; with 8 bits they are exact in it.
std::vector<double> exact_outputs(const RandomLinear& random, const std::vector<float>& x, int64_t rows) {
    const Linear& l = random.linear;
    std::vector<double> outputs;
    for (int64_t row = 0; row < rows; ++row) {
        std::vector<double> steps(x.begin() + row * l.inputs, x.begin() + (row + 1) * l.inputs);
        if (l.input_multiplier != nullptr) {
            std::transform(steps.begin(), steps.end(), l.input_multiplier, steps.begin(), std::multiplies<double>());
        }
        double step = 1;
        if (l.input_scale != nullptr) {
            for (double& value : steps) {
                value = std::min(std::max(std::nearbyint(value / *l.input_scale) + *l.input_offset, -128.0), 127.0);
            }
        } else {
            if (l.hadamard_block != 0) {
                exact_hadamard(steps.data(), l.inputs, l.hadamard_block);
            }
            const double low = std::min(0.0, *std::min_element(steps.begin(), steps.end()));
            const double high = std::max(0.0, *std::max_element(steps.begin(), steps.end()));
            double greatest = std::floor(static_cast<double>(l.input_steps));
            if (l.input_steps == kAsymmetricSteps) {
                step = (high - low) / l.input_steps;
                greatest -= std::nearbyint(-low / step);
            } else {
                step = std::max(high, -low) / l.input_steps;
            }
            for (double& value : steps) {
                value = std::min(std::nearbyint(value / step), greatest);
            }
        }
        for (int64_t n = 0; n < l.outputs; ++n) {
            const double sum = std::inner_product(steps.begin(), steps.end(), random.weight.begin() + n * l.inputs,
                                                  l.quant_bias == nullptr ? 0.0 : l.quant_bias[n]);
            outputs.push_back(
                rounded_sum(static_cast<float>(sum) * l.scale[n] * step, l.bias == nullptr ? 0.0f : l.bias[n]));
        }
    }
    return outputs;
}

// Rows that a dynamic linear quantizes with scale 1, so that everything is exact; including extreme ones.
std::vector<float> whole_inputs(Random& random, const Linear& linear, int64_t rows) {
    const int64_t size = linear.inputs;
    std::vector<double> x(static_cast<size_t>(rows * size));
    const bool is_wide = rows_of_bytes(linear) == 2, has_zeros = linear.input_steps == kAsymmetricSteps;
    for (int64_t row = 0; row < rows; ++row) {
        // All numbers of one row are halves, which are rounded to even numbers.
        const double zero = !has_zeros ? 127.0 : row == 2 ? 127.5 : random.next();
        std::generate_n(x.begin() + row * size, size, [&] {
            const double some = random.next() % 255 - zero;
            return is_wide ? std::max(256 * some + random.next() - 128, -32639.0) : some;
        });
        x[static_cast<size_t>(row * size)] = has_zeros ? 255 - zero : linear.input_steps;
        x[static_cast<size_t>(row * size + 1)] = has_zeros ? -zero : -linear.input_steps;
    }
    std::fill_n(x.begin(), size, linear.input_steps);
    std::fill_n(x.begin() + size, size, -linear.input_steps);
    for (int64_t row = 0; row < rows; ++row) {
        if (linear.hadamard_block != 0) {
            exact_hadamard(x.data() + row * size, size, linear.hadamard_block);
        }
        if (linear.input_multiplier != nullptr) {
            std::transform(x.begin() + row * size, x.begin() + (row + 1) * size, linear.input_multiplier,
                           x.begin() + row * size, std::divides<double>());
        }
    }
    return {x.begin(), x.end()};
}

constexpr int64_t kOutputs = 70;

// As apply, which cuts rows into jobs of a strip for so few outputs.
void apply_at_once(const KernelTable& kernels, const Linear& linear, const std::vector<float>& x, int64_t rows,
                   bool add, std::vector<float>& out) {
    std::vector<uint8_t> bytes(static_cast<size_t>(rows * rows_of_bytes(linear) * padded_inputs(linear.inputs)));
    std::vector<float> scales(static_cast<size_t>(rows)), scratch(static_cast<size_t>(linear.inputs));
    std::vector<int32_t> zeros(static_cast<size_t>(rows));
    const Rounded rounded = {rows, bytes.data(), scales.data(), zeros.data()};
    kernels.quantize_inputs(linear, x.data(), scratch.data(), rounded);
    kernels.linear_panels(linear, rounded, 0, (linear.outputs + kPanel - 1) / kPanel, add, out.data());
}

const char* wrong_gated_linears(const KernelTable& table, float steps_of_up) {
    constexpr int64_t kRows = 17, kInputs = 75;
    Random random;
    RandomLinear gate(random, kInputs, kOutputs, 0x1p-12f), up(random, kInputs, kOutputs, 0x1p-12f);
    gate.round_statically(2.0f, -5.0f);
    up.linear.input_steps = steps_of_up;
    const std::vector<float> x = whole_inputs(random, up.linear, kRows);
    std::vector<double> exact = exact_outputs(gate, x, kRows);
    const std::vector<double> ups = exact_outputs(up, x, kRows);
    std::transform(exact.begin(), exact.end(), ups.begin(), exact.begin(),
                   [](double g, double u) { return exact_silu(g) * u; });
    const auto run = [&](const KernelTable& kernels) {
        std::vector<float> out(kRows * kOutputs);
        apply_gated(kernels, {x.data(), kRows, {}}, gate.linear, up.linear, out.data(), 1);
        return out;
    };
    return wrong_kernel_in(table, "gated_panels", run, exact, 1e-6);
}

}  // namespace

RandomLinear::RandomLinear(Random& random, int64_t inputs, int64_t outputs, float unit)
    : weight(static_cast<size_t>(inputs * outputs)),
      packed(static_cast<size_t>(padded_inputs(inputs) * padded_outputs(outputs))),
      totals(static_cast<size_t>(outputs)),
      bias(random.floats(outputs, unit)) {
    std::generate(weight.begin(), weight.end(), [&] { return static_cast<int8_t>(random.next()); });
    std::fill_n(weight.begin(), inputs, int8_t{-128});
    pack_weight(weight.data(), outputs, inputs, packed.data(), totals.data(), 1);
    for (int64_t n = 0; n < outputs; ++n) {
        scale.push_back(unit / static_cast<float>(1 << n % 4));
        quant_bias.push_back((random.next() - 128) * 10);
    }
    linear.inputs = inputs;
    linear.outputs = outputs;
    linear.input_steps = 127.0f;
    linear.weight = packed.data();
    linear.totals = totals.data();
    linear.scale = scale.data();
    linear.bias = bias.data();
}

RandomLinear& RandomLinear::multiply_inputs(Random& random) {
    for (int64_t k = 0; k < linear.inputs; ++k) {
        const float power = 4.0f / static_cast<float>(1 << random.next() % 5);
        multiplier.push_back(random.next() % 2 == 0 ? power : -power);
    }
    linear.input_multiplier = multiplier.data();
    return *this;
}

RandomLinear& RandomLinear::round_statically(float scale_of_inputs, float offset) {
    input = {scale_of_inputs, offset};
    linear.input_scale = &input[0];
    linear.input_offset = &input[1];
    linear.quant_bias = quant_bias.data();
    linear.bias = nullptr;
    return *this;
}

const char* wrong_kernel_in_linears(const KernelTable& table) {
    struct Case {
        int64_t rows, inputs, hadamard_block;
        bool is_static, multiplies, add;
        float unit, input_steps = 127.0f;
    };
    // Fewer and more rows and columns than a strip and a panel; Hadamard blocks smaller and larger than a vector;
    // depths that tiles of AMX fill and do not fill.
    const Case cases[] = {{3, 999, 0, false, false, false, 1.0f},
                          {17, 128, 64, false, false, true, 0.125f},
                          {6, 12, 4, false, false, true, 0.125f},
                          {17, 75, 0, true, false, true, 0.125f},
                          {5, 75, 0, false, true, false, 0.125f},
                          {6, 48, 16, false, true, true, 0.125f},
                          {3, 75, 0, true, true, false, 0.125f},
                          {5, 75, 0, false, false, true, 0.125f, 127.5f},
                          {22, 590, 0, true, false, false, 0.125f},
                          {3, 999, 0, false, false, false, 1.0f, kWideSteps},
                          {6, 48, 16, false, true, true, 0.125f, kWideSteps},
                          {22, 130, 0, false, false, true, 0.125f, kWideSteps},
                          {3, 999, 0, false, false, false, 1.0f, kAsymmetricSteps},
                          {6, 48, 16, false, true, true, 0.125f, kAsymmetricSteps},
                          {22, 130, 0, false, false, true, 0.125f, kAsymmetricSteps}};
    Random random;
    for (const Case& c : cases) {
        RandomLinear linear(random, c.inputs, kOutputs, c.unit);
        linear.linear.hadamard_block = c.hadamard_block;
        linear.linear.input_steps = c.input_steps;
        if (c.is_static) {
            linear.round_statically(0.75f, 3.0f);
        }
        if (c.multiplies) {
            linear.multiply_inputs(random);
        }
        const std::vector<float> x = whole_inputs(random, linear.linear, c.rows);
        const std::vector<float> before = random.floats(c.rows * kOutputs, 1.0f);
        std::vector<double> exact = exact_outputs(linear, x, c.rows);
        if (c.add) {
            std::transform(exact.begin(), exact.end(), before.begin(), exact.begin(), rounded_sum);
        }
        const auto run = [&](const KernelTable& kernels) {
            std::vector<float> out = before;
            if (c.rows > kStrip) {
                apply_at_once(kernels, linear.linear, x, c.rows, c.add, out);
                return out;
            }
            const Product product = {&linear.linear, out.data(), c.add};
            apply(kernels, {x.data(), c.rows, {}}, &product, 1, 1);
            return out;
        };
        if (const char* kernel = wrong_kernel_in(table, "linear", run, exact, 0)) {
            return kernel;
        }
    }
    return nullptr;
}

const char* wrong_kernel_in_gated_linears(const KernelTable& table) {
    for (const float steps : {127.0f, kWideSteps, kAsymmetricSteps}) {
        if (const char* kernel = wrong_gated_linears(table, steps)) {
            return kernel;
        }
    }
    return nullptr;
}

}  // namespace faquant
