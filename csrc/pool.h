#pragma once

#include <cstdint>
#include <functional>

namespace faquant {

// Call work(job) for every job in [0, jobs), on up to `threads` threads, this one among them. Idle threads wait for the
// next call, actively for a moment. An exception is thrown again here. `work` must not call it.
void parallel(int64_t jobs, int64_t threads, const std::function<void(int64_t)>& work);

}  // namespace faquant
