#include "ops/linear.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

#include "ops/cache_line.h"
#include "runtime/pool.h"

namespace faquant {
namespace {

// Number of products that takes longer than waking a waiting thread.
constexpr int64_t kWorkPerThread = int64_t{1} << 16;
constexpr int64_t kRowsPerJob = 8;
// Jobs per thread, so that no thread waits long for the last one.
constexpr int64_t kJobsPerThread = 4;
// With fewer panels per thread, rows are split, too, although each panel is then read several times.
constexpr int64_t kPanelsPerThread = 16;
// Rows of floats that share a part of a panel in a unit.
constexpr int64_t kFloatRowsPerJob = 96;

template <typename AnyLinear>
int64_t panels(const AnyLinear& linear) {
    return (linear.outputs + kPanel - 1) / kPanel;
}

bool rounds_alike(const Linear& a, const Linear& b) {
    if (a.input_scale != nullptr && b.input_scale != nullptr) {
        return *a.input_scale == *b.input_scale && *a.input_offset == *b.input_offset;
    }
    return a.input_scale == b.input_scale && a.input_steps == b.input_steps && a.hadamard_block == b.hadamard_block;
}

// q, k and v usually have equal multipliers, each in memory of its own.
bool multiplies_alike(const Linear& a, const Linear& b) {
    const float *one = a.input_multiplier, *other = b.input_multiplier;
    return one == other || (one != nullptr && other != nullptr &&
                            std::memcmp(one, other, static_cast<size_t>(a.inputs) * sizeof(float)) == 0);
}

int64_t threads_for(int64_t products, int64_t threads) {
    return std::max<int64_t>(1, std::min(threads, products / kWorkPerThread));
}

// Rows per job, in whole strips, for `total` panels.
int64_t rows_per_job(int64_t rows, int64_t total, int64_t threads, int64_t strip = kStrip) {
    const int64_t parts = (kPanelsPerThread * threads + total - 1) / total;
    return ((rows + parts - 1) / parts + strip - 1) / strip * strip;
}

// The inputs of several linears; linears with the same multiplier and rounding share the bytes.
class RoundedInputs {
  public:
    RoundedInputs(const KernelTable& table, const Inputs& inputs, const std::vector<const Linear*>& linears,
                  int64_t threads)
        : depth_(padded_inputs(linears[0]->inputs)) {
        const int64_t size = linears[0]->inputs, depth = depth_;
        std::vector<const Linear*> kinds;
        for (const Linear* linear : linears) {
            const auto same = std::find_if(kinds.begin(), kinds.end(), [&](const Linear* kind) {
                return rounds_alike(*kind, *linear) && multiplies_alike(*kind, *linear);
            });
            kind_.push_back(same - kinds.begin());
            if (same == kinds.end()) {
                kinds.push_back(linear);
            }
        }
        const auto count = static_cast<int64_t>(kinds.size());
        int64_t all_parts = 0;
        for (const Linear* kind : kinds) {
            parts_.push_back(rows_of_bytes(*kind));
            all_parts += parts_.back();
        }
        // On a cache line, because AMX reads 64 bytes of a row at a time.
        bytes_.reset(new uint8_t[static_cast<size_t>(all_parts * inputs.rows * depth + kCacheLine)]);
        uint8_t* bytes = next_line(bytes_.get());
        scales_.reset(new float[static_cast<size_t>(count * inputs.rows)]);
        zeros_.reset(new int32_t[static_cast<size_t>(count * inputs.rows)]);
        for (int64_t kind = 0; kind < count; ++kind) {
            const int64_t first = kind * inputs.rows;
            rounded_.push_back({inputs.rows, bytes, scales_.get() + first, zeros_.get() + first});
            bytes += parts_[static_cast<size_t>(kind)] * inputs.rows * depth;
        }
        parallel((inputs.rows + kRowsPerJob - 1) / kRowsPerJob, threads, [&](int64_t job) {
            const int64_t first = job * kRowsPerJob, rows = std::min(kRowsPerJob, inputs.rows - first);
            const bool normed = inputs.norm.weight != nullptr;
            const std::unique_ptr<float[]> scratch(new float[static_cast<size_t>(size * (normed ? rows + 1 : 1))]);
            const float* x = inputs.x + first * size;
            if (normed) {
                table.rms_norm(inputs.norm, x, rows, size, scratch.get() + size);
                x = scratch.get() + size;
            }
            for (int64_t kind = 0; kind < count; ++kind) {
                table.quantize_inputs(*kinds[static_cast<size_t>(kind)], x, scratch.get(), some(kind, first, rows));
            }
        });
    }

    // Some rows, quantized for this linear.
    Rounded of(int64_t linear, int64_t first, int64_t rows) const {
        return some(kind_[static_cast<size_t>(linear)], first, rows);
    }

  private:
    Rounded some(int64_t kind, int64_t first, int64_t rows) const {
        const Rounded& all = rounded_[static_cast<size_t>(kind)];
        return {rows, all.bytes + first * parts_[static_cast<size_t>(kind)] * depth_, all.scales + first,
                all.zeros + first};
    }

    int64_t depth_;
    std::vector<int64_t> kind_;     // of each linear
    std::vector<int64_t> parts_;    // of each kind: rows of bytes of a row
    std::vector<Rounded> rounded_;  // of each kind
    std::unique_ptr<uint8_t[]> bytes_;
    std::unique_ptr<float[]> scales_;
    std::unique_ptr<int32_t[]> zeros_;
};

}  // namespace

void apply(const KernelTable& table, const Inputs& inputs, const Product* products, int64_t count, int64_t threads) {
    int64_t outputs = 0, total = 0;
    std::vector<const Linear*> linears;
    for (int64_t i = 0; i < count; ++i) {
        linears.push_back(products[i].linear);
        outputs += products[i].linear->outputs;
        total += panels(*products[i].linear);
    }
    const int64_t wanted = threads_for(inputs.rows * linears[0]->inputs * outputs, threads);
    const RoundedInputs rounded(table, inputs, linears, wanted);
    struct Job {
        int64_t product, first, last, row;
    };
    std::vector<Job> jobs;
    const int64_t some = std::max<int64_t>(1, total / (wanted * kJobsPerThread));
    const int64_t rows = rows_per_job(inputs.rows, total, wanted);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t last = panels(*products[i].linear);
        for (int64_t first = 0; first < last; first += some) {
            for (int64_t row = 0; row < inputs.rows; row += rows) {
                jobs.push_back({i, first, std::min(first + some, last), row});
            }
        }
    }
    parallel(static_cast<int64_t>(jobs.size()), wanted, [&](int64_t number) {
        const Job& job = jobs[static_cast<size_t>(number)];
        const Product& product = products[job.product];
        table.linear_panels(*product.linear, rounded.of(job.product, job.row, std::min(rows, inputs.rows - job.row)),
                            job.first, job.last, product.add, product.out + job.row * product.linear->outputs);
    });
}

void apply(const KernelTable& table, const FloatLinear& linear, const float* x, int64_t rows, float* out,
           int64_t threads) {
    const int64_t wanted = threads_for(rows * linear.inputs * linear.outputs, threads), total = panels(linear);
    const int64_t some = std::max<int64_t>(1, total / (wanted * kJobsPerThread));
    const int64_t together = rows_per_job(std::max<int64_t>(1, rows), total, wanted, kFloatRowsPerJob);
    const int64_t parts = (rows + together - 1) / together;
    parallel((total + some - 1) / some * parts, wanted, [&](int64_t job) {
        const int64_t first = job / parts * some, row = job % parts * together;
        table.float_panels(linear, x + row * linear.inputs, std::min(together, rows - row), first,
                           std::min(first + some, total), out + row * linear.outputs);
    });
}

void apply_gated(const KernelTable& table, const Inputs& inputs, const Linear& gate, const Linear& up, float* out,
                 int64_t threads) {
    const int64_t wanted = threads_for(2 * inputs.rows * gate.inputs * gate.outputs, threads);
    const RoundedInputs rounded(table, inputs, {&gate, &up}, wanted);
    const int64_t total = panels(gate), some = std::max<int64_t>(1, total / (wanted * kJobsPerThread));
    const int64_t rows = rows_per_job(inputs.rows, total, wanted), parts = (inputs.rows + rows - 1) / rows;
    parallel((total + some - 1) / some * parts, wanted, [&](int64_t job) {
        const int64_t first = job / parts * some, row = job % parts * rows, count = std::min(rows, inputs.rows - row);
        table.gated_panels(gate, rounded.of(0, row, count), up, rounded.of(1, row, count), first,
                           std::min(first + some, total), out + row * up.outputs);
    });
}

}  // namespace faquant
