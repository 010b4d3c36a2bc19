#pragma once

#include <cstdint>
#include <functional>

namespace faquant {

// Call work(job) for every job in [0, jobs), on up to `threads` threads, this one among them. Idle threads wait for the
// next call, actively for a moment. An exception is thrown again here. `work` must not call it. Each thread begins with
// jobs of its own, one behind the other, because their data often stand so.
void parallel(int64_t jobs, int64_t threads, const std::function<void(int64_t)>& work);

// The same, but the jobs are begun in their order, whoever is free: for jobs of unlike sizes, the largest first.
void parallel_in_order(int64_t jobs, int64_t threads, const std::function<void(int64_t)>& work);

// What a call for `threads` threads uses; 0: as many as were set last, one before that.
int64_t threads_of(int64_t threads);
void set_threads(int64_t threads);

}  // namespace faquant
