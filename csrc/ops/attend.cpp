#include "ops/attend.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

#include "ops/cache_line.h"
#include "runtime/pool.h"

namespace faquant {
namespace {

// Rows that share each read of K and V, as many as fit into the L2 cache.
constexpr int64_t kBlockRows = 256;
// With fewer blocks of rows per thread, every split of the keys is a separate job.
constexpr int64_t kBlocksPerThread = 4;
// Number of products that takes longer than waking a thread.
constexpr int64_t kWorkPerThread = int64_t{1} << 18;
constexpr int64_t kTokensPerJob = 16;

int64_t round_up(int64_t x, int64_t step) {
    return (x + step - 1) / step * step;
}

// Memory of one thread, which grows and is reused.
class ScratchMemory {
  public:
    // Divided into parts of these sizes in bytes.
    template <size_t count, size_t most>
    void cut(const int64_t (&sizes)[count], char* (&parts)[most]) {
        static_assert(count <= most);
        int64_t total = kCacheLine;
        for (const int64_t size : sizes) {
            total += round_up(size, kCacheLine);
        }
        if (static_cast<int64_t>(bytes_.size()) < total) {
            bytes_.assign(static_cast<size_t>(total), 0);
        }
        char* next = next_line(bytes_.data());
        for (size_t i = 0; i < count; ++i) {
            parts[i] = next;
            next += round_up(sizes[i], kCacheLine);
        }
    }

  private:
    std::vector<char> bytes_;
};

Partial partial(char* start, int64_t rows, int64_t padded) {
    auto* floats = reinterpret_cast<float*>(start);
    return {floats + rows * padded, floats + rows * (padded + 1), floats};
}

int64_t partial_bytes(int64_t rows, int64_t padded) {
    return rows * (padded + 2) * static_cast<int64_t>(sizeof(float));
}

// Scratch for blocks of up to `most_rows` rows, and the `total` of one of `rows`.
Scratch cut(ScratchMemory& memory, const Cache& cache, int64_t dim, int64_t most_rows, int64_t rows, Partial& total) {
    const int64_t padded = padded_dim(dim), outs = partial_bytes(most_rows, padded);
    Scratch scratch{};
    char* p[8];
    const auto floats = [&](int part) { return reinterpret_cast<float*>(p[part]); };
    if (cache.float_k != nullptr) {
        memory.cut({outs, outs, most_rows * padded * 4, kStrip * padded * 4, kTile * dim * 4, kTile * padded * 4}, p);
        scratch.factors = floats(2);
        scratch.sums = floats(3);
        scratch.float_k = floats(4);
        scratch.float_v = floats(5);
    } else if (cache.bfloat16_k != nullptr) {
        memory.cut({outs, outs, most_rows * padded * 4, kStrip * padded * 4, kTile * padded * 2}, p);
        scratch.factors = floats(2);
        scratch.sums = floats(3);
        scratch.v = reinterpret_cast<uint16_t*>(p[4]);
    } else {
        memory.cut({outs, outs, most_rows * padded, most_rows * 4, most_rows * 4, most_rows * 4, 2 * kStrip * kTile,
                    2 * kStrip * std::max(kTile, padded) * 4},
                   p);
        scratch.q = reinterpret_cast<int8_t*>(p[2]);
        scratch.scale = floats(3);
        scratch.bias = floats(4);
        scratch.excess = reinterpret_cast<int32_t*>(p[5]);
        scratch.p = reinterpret_cast<uint8_t*>(p[6]);
        scratch.products = reinterpret_cast<int32_t*>(p[7]);
    }
    scratch.split = partial(p[0], rows, padded);
    total = partial(p[1], rows, padded);
    return scratch;
}

// Rows of one span in one key/value head. Its keys are split into `parts` parts of `keys` keys, one job each.
struct Block {
    const Span* span;
    int64_t kv_head, first, last, begin, keys, parts;
    int64_t job;      // its first job
    int64_t partial;  // where its partial results are stored, if there are several
};

}  // namespace

void append(const KernelTable& table, const Scheme& scheme, const Cache& cache, const float* k, const float* v,
            const int64_t* slots, const int64_t* positions, int64_t tokens, int64_t threads, int64_t saturated[2]) {
    std::atomic<int64_t> k_beyond{0}, v_beyond{0};
    parallel((tokens + kTokensPerJob - 1) / kTokensPerJob, threads, [&](int64_t job) {
        int64_t counts[2] = {};
        const int64_t first = job * kTokensPerJob;
        table.append(scheme, cache, k, v, slots, positions, first, std::min(first + kTokensPerJob, tokens), counts);
        k_beyond += counts[0];
        v_beyond += counts[1];
    });
    saturated[0] = k_beyond;
    saturated[1] = v_beyond;
}

int64_t attend(const KernelTable& table, const Attention& a, const Span* spans, int64_t count, int64_t threads) {
    const Scheme& s = *a.scheme;
    const int64_t group = s.heads / s.kv_heads;
    const int64_t padded = padded_dim(s.dim);

    const auto rows_at_once = [&](const Span& span) {
        return std::max<int64_t>(1, std::min(span.tokens, kBlockRows / group));
    };
    int64_t whole = 0;
    for (int64_t i = 0; i < count; ++i) {
        whole += (spans[i].tokens + rows_at_once(spans[i]) - 1) / rows_at_once(spans[i]) * s.kv_heads;
    }
    const bool few = whole < kBlocksPerThread * threads;

    std::vector<Block> blocks;
    std::vector<int64_t> owners;  // of each job
    int64_t work = 0, kept = 0, most_rows = 0;
    for (int64_t i = 0; i < count; ++i) {
        const Span& span = spans[i];
        const int64_t block = rows_at_once(span);
        // The last blocks see the most keys: run them first, so that no thread finishes one alone.
        for (int64_t first = (span.tokens - 1) / block * block; first >= 0; first -= block) {
            const int64_t last = std::min(first + block, span.tokens);
            const int64_t oldest = std::max<int64_t>(0, span.start + first - a.window + 1);
            const int64_t begin = oldest / a.split * a.split, end = span.start + last;
            const int64_t rows = (last - first) * group;
            const int64_t keys = few ? a.split : round_up(end - begin, a.split);
            const int64_t parts = (end - begin + keys - 1) / keys;
            for (int64_t head = 0; head < s.kv_heads; ++head) {
                blocks.push_back(
                    {&span, head, first, last, begin, keys, parts, static_cast<int64_t>(owners.size()), kept});
                owners.insert(owners.end(), static_cast<size_t>(parts), static_cast<int64_t>(blocks.size()) - 1);
                kept += parts > 1 ? parts * partial_bytes(rows, padded) : 0;
            }
            work += (last - first) * s.heads * s.dim * round_up(end - begin, kTile);  // tiles are computed whole
            most_rows = std::max(most_rows, rows);
        }
    }

    const std::unique_ptr<char[]> partials(new char[static_cast<size_t>(kept)]);
    const std::unique_ptr<std::atomic<int64_t>[]> left(new std::atomic<int64_t>[blocks.size()]);
    for (size_t i = 0; i < blocks.size(); ++i) {
        left[i] = blocks[i].parts;
    }
    std::atomic<int64_t> saturated{0};
    const auto all = few ? parallel : parallel_in_order;
    all(static_cast<int64_t>(owners.size()), std::max<int64_t>(1, std::min(threads, work / kWorkPerThread)),
        [&](int64_t job) {
            const int64_t number = owners[static_cast<size_t>(job)];
            const Block& b = blocks[static_cast<size_t>(number)];
            const int64_t rows = (b.last - b.first) * group;
            thread_local ScratchMemory memory;
            Partial total;
            const Scratch scratch = cut(memory, *a.cache, s.dim, most_rows, rows, total);
            const auto part = [&](int64_t i) {
                return partial(partials.get() + b.partial + i * partial_bytes(rows, padded), rows, padded);
            };
            const int64_t mine = job - b.job;
            const int64_t begin = b.begin + mine * b.keys;
            saturated += table.attend(a, *b.span, b.kv_head, b.first, b.last, begin, begin + b.keys, scratch,
                                      b.parts > 1 ? part(mine) : total);
            if (left[static_cast<size_t>(number)].fetch_sub(1) > 1) {
                return;
            }
            std::vector<Partial> others;
            if (b.parts > 1) {
                total = part(0);
                for (int64_t i = 1; i < b.parts; ++i) {
                    others.push_back(part(i));
                }
            }
            table.finish(others.data(), static_cast<int64_t>(others.size()), rows, s, total);
            for (int64_t r = 0; r < rows; ++r) {
                const int64_t token = b.span->first + b.first + r / group;
                std::memcpy(a.out + (token * s.heads + b.kv_head * group + r % group) * s.dim, total.out + r * padded,
                            static_cast<size_t>(s.dim) * sizeof(float));
            }
        });
    return saturated;
}

}  // namespace faquant
