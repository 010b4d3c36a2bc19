#include "ops/stream.h"

#include <algorithm>
#include <atomic>

#include "runtime/pool.h"

namespace faquant {

uint64_t read_all(const uint64_t* words, int64_t count, int64_t threads) {
    constexpr int64_t kJob = 1 << 16, kLanes = 64;
    std::atomic<uint64_t> result{0};
    parallel((count + kJob - 1) / kJob, threads, [&](int64_t job) {
        const int64_t end = std::min(count, (job + 1) * kJob);
        uint64_t lanes[kLanes] = {};
        int64_t i = job * kJob;
        for (; i + kLanes <= end; i += kLanes) {
            for (int64_t j = 0; j < kLanes; ++j) {
                lanes[j] ^= words[i + j];
            }
        }
        for (; i < end; ++i) {
            lanes[0] ^= words[i];
        }
        uint64_t all = 0;
        for (const uint64_t lane : lanes) {
            all ^= lane;
        }
        result ^= all;
    });
    return result;
}

}  // namespace faquant
