#pragma once

#include <cstdint>
#include <functional>

namespace faquant {

// Call work(job) for every job in [0, jobs), on up to `threads` threads, including the calling one. Idle threads wait
// for the next call, at first by spinning. Exceptions are rethrown here. `work` must not call this function. Each
// thread starts with a contiguous range of jobs, because their data is often contiguous.
void parallel(int64_t jobs, int64_t threads, const std::function<void(int64_t)>& work);

// The same, but free threads take the jobs in order: for jobs of different sizes, the largest first.
void parallel_in_order(int64_t jobs, int64_t threads, const std::function<void(int64_t)>& work);

// The number of threads for a call with `threads`; 0: the last number set, initially one.
int64_t threads_of(int64_t threads);
void set_threads(int64_t threads);

}  // namespace faquant
