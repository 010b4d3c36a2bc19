#include "runtime/pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#ifdef FAQUANT_X86
#include <immintrin.h>
#endif

namespace faquant {
namespace {

// Longer than the time between two kernels of a step, and too short to waste noticeable CPU time.
constexpr std::chrono::microseconds kActiveWait{1000};

// Number of polls before yielding the core.
constexpr int64_t kPatience = 4096;

void pause() {
#ifdef FAQUANT_X86
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

class Pool {
  public:
    // Calls from several threads run one after another.
    void run(int64_t jobs, int64_t threads, bool in_order, const std::function<void(int64_t)>& work) {
        const std::lock_guard<std::mutex> one_at_a_time(calls_);
        grow(threads - 1);
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            work_ = &work;
            wanted_ = threads - 1;
            for (int64_t i = 0; i < threads; ++i) {
                Seat& seat = seats_[static_cast<size_t>(i)];
                seat.next = in_order ? (i == 0 ? 0 : jobs) : jobs * i / threads;
                seat.end = in_order ? jobs : jobs * (i + 1) / threads;
            }
            open_ = true;
            generation_.fetch_add(1, std::memory_order_release);
        }
        for (int64_t i = 1; i < threads; ++i) {
            if (Seat& seat = seats_[static_cast<size_t>(i)]; seat.sleeps) {
                seat.wake.notify_one();
            }
        }
        work_off(0);
        {
            // Do not wait for threads that have not started by now.
            const std::lock_guard<std::mutex> lock(mutex_);
            open_ = false;
        }
        for (int64_t i = 0; active_.load(std::memory_order_acquire) > 0; ++i) {
            if (i < kPatience) {
                pause();
            } else {
                // There may be fewer cores than spinning threads, including torch's.
                std::this_thread::yield();
            }
        }
        if (error_) {
            std::rethrow_exception(std::exchange(error_, nullptr));
        }
    }

  private:
    // A thread's jobs, on a separate cache line, and the condition that it sleeps on.
    struct alignas(64) Seat {
        std::atomic<int64_t> next{0};
        int64_t end = 0;
        std::atomic<bool> sleeps{false};
        std::condition_variable wake;
    };

    void grow(int64_t count) {
        while (static_cast<int64_t>(seats_.size()) <= count) {
            seats_.emplace_back();
        }
        while (static_cast<int64_t>(threads_.size()) < count) {
            try {
                const int64_t mine = static_cast<int64_t>(threads_.size()) + 1;
                Seat& seat = seats_[static_cast<size_t>(mine)];
                const uint64_t generation = generation_.load();
                threads_.emplace_back([this, mine, &seat, generation] { loop(mine, seat, generation); });
            } catch (const std::system_error&) {
                // Continue with the existing threads.
                return;
            }
        }
    }

    [[noreturn]] void loop(int64_t mine, Seat& seat, uint64_t seen) {
        while (true) {
            wait_actively(mine, seen);
            {
                std::unique_lock<std::mutex> lock(mutex_);
                seat.sleeps = true;
                seat.wake.wait(lock, [&] { return is_wanted(mine, seen); });
                seat.sleeps = false;
                seen = generation_;
                if (!open_) {
                    continue;
                }
                active_.fetch_add(1);
            }
            work_off(mine);
            active_.fetch_sub(1, std::memory_order_release);
        }
    }

    // Calls that do not use this thread do not extend its spinning.
    void wait_actively(int64_t mine, uint64_t seen) const {
        const auto until = std::chrono::steady_clock::now() + kActiveWait;
        while (std::chrono::steady_clock::now() < until) {
            for (int i = 0; i < 64; ++i) {
                if (is_wanted(mine, seen)) {
                    return;
                }
                pause();
            }
        }
    }

    bool is_wanted(int64_t mine, uint64_t seen) const {
        return generation_.load(std::memory_order_acquire) != seen && mine <= wanted_;
    }

    // A thread starts with its own jobs, and then helps the others.
    void work_off(int64_t mine) {
        const int64_t threads = wanted_ + 1;
        try {
            for (int64_t i = 0; i < threads; ++i) {
                Seat& seat = seats_[static_cast<size_t>((mine + i) % threads)];
                for (int64_t job = seat.next++; job < seat.end; job = seat.next++) {
                    (*work_)(job);
                }
            }
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex_);
            error_ = std::current_exception();
            for (int64_t i = 0; i < threads; ++i) {
                seats_[static_cast<size_t>(i)].next = seats_[static_cast<size_t>(i)].end;
            }
        }
    }

    std::mutex calls_, mutex_;
    std::vector<std::thread> threads_;
    std::deque<Seat> seats_;  // the first is the calling thread's
    std::atomic<uint64_t> generation_{0};
    std::atomic<int64_t> active_{0}, wanted_{0};
    const std::function<void(int64_t)>* work_ = nullptr;
    bool open_ = false;
    std::exception_ptr error_;
};

// Never destroyed: threads do not survive a fork, and nothing joins them at exit.
Pool& pool() {
    static std::mutex mutex;
    static Pool* current = nullptr;
    static pid_t owner = 0;
    const std::lock_guard<std::mutex> lock(mutex);
    if (current == nullptr || owner != getpid()) {
        current = new Pool;
        owner = getpid();
    }
    return *current;
}

}  // namespace

void parallel(int64_t jobs, int64_t threads, const std::function<void(int64_t)>& work) {
    if (jobs <= 1 || threads <= 1) {
        for (int64_t job = 0; job < jobs; ++job) {
            work(job);
        }
        return;
    }
    pool().run(jobs, std::min(threads, jobs), false, work);
}

void parallel_in_order(int64_t jobs, int64_t threads, const std::function<void(int64_t)>& work) {
    if (jobs <= 1 || threads <= 1) {
        parallel(jobs, threads, work);
        return;
    }
    pool().run(jobs, std::min(threads, jobs), true, work);
}

namespace {
std::atomic<int64_t> set{1};
}  // namespace

int64_t threads_of(int64_t threads) {
    return threads > 0 ? threads : set.load(std::memory_order_relaxed);
}

void set_threads(int64_t threads) {
    set.store(threads, std::memory_order_relaxed);
}

}  // namespace faquant
