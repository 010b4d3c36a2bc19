#include "attend.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <system_error>
#include <thread>
#include <vector>

namespace faquant {
namespace {

// Rows that share the unpacking of a tile of K and V.
constexpr int64_t kBlockRows = 256;
// Products that take about ten times as long as starting a thread does.
constexpr int64_t kWorkPerThread = int64_t{1} << 24;

int64_t round_up(int64_t x, int64_t step) {
    return (x + step - 1) / step * step;
}

class Room {
  public:
    Room(int64_t rows, int64_t padded) {
        const int64_t floats = rows * (padded + 2);
        const int64_t sizes[] = {rows * padded * 2,  kTile * padded * 2,
                                 kTile * padded * 2, kStrip * std::max(kTile, padded) * 4,
                                 floats * 4,         floats * 4};
        int64_t total = kLine;
        for (const int64_t size : sizes) {
            total += round_up(size, kLine);
        }
        bytes_.resize(static_cast<size_t>(total));
        const auto address = reinterpret_cast<uintptr_t>(bytes_.data());
        char* next = bytes_.data() + (kLine - address % kLine);
        char* parts[6];
        for (int i = 0; i < 6; ++i) {
            parts[i] = next;
            next += round_up(sizes[i], kLine);
        }
        scratch_.q = reinterpret_cast<int16_t*>(parts[0]);
        scratch_.k = reinterpret_cast<int16_t*>(parts[1]);
        scratch_.v = reinterpret_cast<int16_t*>(parts[2]);
        scratch_.products = reinterpret_cast<int32_t*>(parts[3]);
        scratch_.split = partial(reinterpret_cast<float*>(parts[4]), rows, padded);
        scratch_.total = partial(reinterpret_cast<float*>(parts[5]), rows, padded);
    }

    const Scratch& scratch() const { return scratch_; }

  private:
    static constexpr int64_t kLine = 64;

    static Partial partial(float* start, int64_t rows, int64_t padded) {
        return {start + rows * padded, start + rows * (padded + 1), start};
    }

    std::vector<char> bytes_;
    Scratch scratch_{};
};

}  // namespace

void attend(const KernelTable& table, const Attention& a, int64_t threads) {
    const int64_t group = a.heads / a.kv_heads;
    const int64_t block = std::max<int64_t>(1, std::min(a.tokens, kBlockRows / group));
    const int64_t blocks = (a.tokens + block - 1) / block;
    const int64_t jobs = blocks * a.kv_heads;
    const int64_t work = a.tokens * a.heads * a.dim * std::min(a.window, a.start + a.tokens);
    const int64_t count = std::max<int64_t>(1, std::min({threads, jobs, work / kWorkPerThread}));

    std::vector<Room> rooms;
    for (int64_t i = 0; i < count; ++i) {
        rooms.emplace_back(round_up(block * group, kStrip), round_up(a.dim, kPadding));
    }
    std::atomic<int64_t> next{0};
    const auto work_off = [&](const Room& room) {
        for (int64_t job = next++; job < jobs; job = next++) {
            // The last blocks see the most keys: they go first, so that no thread ends up alone with one.
            const int64_t first = (blocks - 1 - job / a.kv_heads) * block;
            table.attend_rows(a, job % a.kv_heads, first, std::min(first + block, a.tokens), room.scratch());
        }
    };
    std::vector<std::thread> helpers;
    try {
        for (size_t i = 1; i < rooms.size(); ++i) {
            helpers.emplace_back(work_off, std::cref(rooms[i]));
        }
    } catch (const std::system_error&) {
        // The threads that there are do the work.
    }
    work_off(rooms[0]);
    for (std::thread& helper : helpers) {
        helper.join();
    }
}

}  // namespace faquant
