#include "ops/elementwise.h"

#include <algorithm>

#include "runtime/pool.h"

namespace faquant {
namespace {

// Elements per job: smaller jobs finish before another thread wakes up.
constexpr int64_t kElements = 1 << 15;

int64_t rows_per_job(int64_t size) {
    return std::max<int64_t>(1, kElements / size);
}

}  // namespace

void rms_norm(const KernelTable& table, const Norm& norm, const float* x, int64_t rows, int64_t size, float* out,
              int64_t threads) {
    const int64_t some = rows_per_job(size);
    parallel((rows + some - 1) / some, threads, [&](int64_t job) {
        const int64_t first = job * some;
        table.rms_norm(norm, x + first * size, std::min(some, rows - first), size, out + first * size);
    });
}

void rope(const KernelTable& table, float* x, const float* cos, const float* sin, int64_t tokens, int64_t heads,
          int64_t dim, int64_t threads) {
    const int64_t some = rows_per_job(heads * dim);
    parallel((tokens + some - 1) / some, threads, [&](int64_t job) {
        const int64_t first = job * some;
        table.rope(x + first * heads * dim, cos + first * dim, sin + first * dim, std::min(some, tokens - first), heads,
                   dim);
    });
}

void gated(const KernelTable& table, Activation activation, const float* gate, const float* up, int64_t count,
           float* out, int64_t threads) {
    const auto kernel = activation == Activation::kGelu ? table.gelu_times : table.silu_times;
    parallel((count + kElements - 1) / kElements, threads, [&](int64_t job) {
        const int64_t first = job * kElements;
        kernel(gate + first, up + first, std::min(kElements, count - first), out + first);
    });
}

}  // namespace faquant
