#include "ops/draw.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "ops/score_row.h"
#include "runtime/pool.h"

namespace faquant {
namespace {

// Below 1 by a margin for the rounding of its product with the sum of all weights.
constexpr double kMostUniform = 1.0 - 0x1p-48;

int64_t draw(const KernelTable& table, const Scores& scores, const Sampling& sampling) {
    ScoreRow row(table, scores);
    if (!std::isfinite(row.top())) {
        return -1;
    }
    if (sampling.temperature == 0.0) {
        return row.best();
    }
    row.set_temperature(sampling.temperature);
    const double uniform = std::min(sampling.uniform, kMostUniform);
    if (sampling.top_k <= 0 && sampling.top_p == 1.0 && sampling.min_p == 0.0) {
        return row.draw_of_all(uniform);
    }
    const std::vector<Token> tokens = row.kept(sampling);
    const double point = uniform * sum_of(tokens);
    auto token = tokens.begin();
    for (double sum = token->weight; sum <= point; sum += token->weight) {
        ++token;
    }
    return token->id;
}

// The bits of a mask for a block of tokens.
uint64_t bits_of(const uint8_t* mask, int64_t block, int64_t count) {
    static_assert(kBlock == 64);
    const int64_t tokens = std::min(kBlock, count - block * kBlock);
    uint64_t bits = 0;
    for (int64_t byte = 0; byte < (tokens + 7) / 8; ++byte) {
        bits |= uint64_t{mask[8 * block + byte]} << (8 * byte);
    }
    return tokens < kBlock ? bits & ((uint64_t{1} << tokens) - 1) : bits;
}

// Calls `each` for each bit that is set, from the lowest.
template <typename Each>
void for_each_bit(uint64_t bits, const Each& each) {
    for (; bits != 0; bits &= bits - 1) {
        each(__builtin_ctzll(bits));
    }
}

// The blocks of a row in which a mask allows tokens, one after another, with -infinity for the other tokens in them;
// and the numbers of these blocks. What is left out has weight 0, so that the draw is that of the whole row.
std::vector<int64_t> pack_allowed(const Scores& scores, const uint8_t* mask, std::vector<float>& row) {
    constexpr float out = -std::numeric_limits<float>::infinity();
    std::vector<int64_t> blocks;
    row.clear();
    for (int64_t block = 0; block * kBlock < scores.count; ++block) {
        const uint64_t bits = bits_of(mask, block, scores.count);
        if (bits == 0) {
            continue;
        }
        const float* from = scores.narrow + block * kBlock;
        const int64_t tokens = std::min(kBlock, scores.count - block * kBlock);
        blocks.push_back(block);
        if (2 * __builtin_popcountll(bits) > tokens) {
            row.insert(row.end(), from, from + tokens);
            float* to = row.data() + row.size() - tokens;
            for_each_bit(~bits, [&](int64_t i) {
                if (i < tokens) {
                    to[i] = out;
                }
            });
        } else {
            row.insert(row.end(), static_cast<size_t>(tokens), out);
            float* to = row.data() + row.size() - tokens;
            for_each_bit(bits, [&](int64_t i) { to[i] = from[i]; });
        }
    }
    return blocks;
}

int64_t draw_masked(const KernelTable& table, const Draw& one) {
    thread_local std::vector<float> row;  // kept: a new one of this size would be mapped and cleared by the system
    const std::vector<int64_t> blocks = pack_allowed(one.row, one.mask, row);
    const int64_t token = draw(table, {static_cast<int64_t>(row.size()), row.data(), nullptr}, one.sampling);
    return token < 0 ? token : blocks[static_cast<size_t>(token / kBlock)] * kBlock + token % kBlock;
}

int64_t draw_before_mask(const KernelTable& table, const Draw& one) {
    ScoreRow row(table, one.row);
    if (!std::isfinite(row.top())) {
        return -1;
    }
    row.set_temperature(one.sampling.temperature);
    const int64_t best = row.best();
    return row.is_alone(best, one.sampling) ? best : -2;
}

Likeliest likeliest(const KernelTable& table, const Scores& scores, int64_t count) {
    const ScoreRow row(table, scores);
    Likeliest result{row.top() + std::log(sum_of(row.sums())), {}};
    if (count > 0) {
        for (const int64_t id : row.largest(count)) {
            result.tokens.emplace_back(id, row.score(id));
        }
        std::stable_sort(result.tokens.begin(), result.tokens.end(),
                         [](const auto& a, const auto& b) { return a.second > b.second; });
        result.tokens.resize(std::min(result.tokens.size(), static_cast<size_t>(count)));
    }
    return result;
}

}  // namespace

std::vector<int64_t> draw(const KernelTable& table, const std::vector<Draw>& draws, int64_t threads) {
    std::vector<int64_t> tokens(draws.size());
    parallel(static_cast<int64_t>(draws.size()), threads, [&](int64_t job) {
        const auto i = static_cast<size_t>(job);
        const Draw& one = draws[i];
        if (one.before_mask) {
            tokens[i] = draw_before_mask(table, one);
        } else if (one.mask != nullptr) {
            tokens[i] = draw_masked(table, one);
        } else {
            tokens[i] = draw(table, one.row, one.sampling);
        }
    });
    return tokens;
}

std::vector<Token> distribution(const KernelTable& table, const Scores& scores, const Sampling& sampling) {
    ScoreRow row(table, scores);
    row.set_temperature(sampling.temperature);
    return row.kept(sampling);
}

std::vector<Likeliest> likeliest(const KernelTable& table, const std::vector<Scores>& rows,
                                 const std::vector<int64_t>& counts, int64_t threads) {
    std::vector<Likeliest> results(rows.size());
    parallel(static_cast<int64_t>(rows.size()), threads, [&](int64_t job) {
        const auto i = static_cast<size_t>(job);
        if (counts[i] >= 0) {
            results[i] = likeliest(table, rows[i], counts[i]);
        }
    });
    return results;
}

}  // namespace faquant
