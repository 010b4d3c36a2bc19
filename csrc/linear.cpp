#include "linear.h"

#include <algorithm>
#include <cstddef>
#include <memory>

#include "pool.h"

namespace faquant {
namespace {

// Products that take longer than waking a thread does.
constexpr int64_t kWorkPerThread = int64_t{1} << 18;
constexpr int64_t kRowsPerJob = 16;

}  // namespace

void pack_weight(const int8_t* weight, int64_t outputs, int64_t inputs, int8_t* packed, int32_t* excess) {
    const int64_t depth = padded_inputs(inputs), columns = padded_outputs(outputs);
    std::fill(packed, packed + depth * columns, int8_t{0});
    for (int64_t n = 0; n < outputs; ++n) {
        const int64_t panel = n / kPanel * kPanel, width = std::min(kPanel, columns - panel);
        int8_t* column = packed + panel * depth + (n - panel) * 4;
        int32_t sum = 0;
        for (int64_t i = 0; i < inputs; ++i) {
            const int8_t value = weight[n * inputs + i];
            column[i / 4 * 4 * width + i % 4] = value;
            sum += value;
        }
        excess[n] = 128 * sum;
    }
}

void apply(const KernelTable& table, const Linear& linear, const float* x, int64_t rows, float* out, int64_t threads) {
    const int64_t depth = padded_inputs(linear.inputs);
    const int64_t wanted = std::max<int64_t>(1, std::min(threads, rows * depth * linear.outputs / kWorkPerThread));
    const std::unique_ptr<uint8_t[]> bytes(new uint8_t[static_cast<size_t>(rows * depth)]);
    const std::unique_ptr<float[]> scales(new float[static_cast<size_t>(rows)]);
    parallel((rows + kRowsPerJob - 1) / kRowsPerJob, wanted, [&](int64_t job) {
        const std::unique_ptr<float[]> room(new float[static_cast<size_t>(linear.inputs)]);
        table.quantize_inputs(linear, x, job * kRowsPerJob, std::min(rows, (job + 1) * kRowsPerJob), room.get(),
                              bytes.get(), scales.get());
    });
    parallel((linear.outputs + kPanel - 1) / kPanel, wanted,
             [&](int64_t panel) { table.linear_panel(linear, bytes.get(), scales.get(), rows, panel, out); });
}

}  // namespace faquant
