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

// The token of a mask that allows only one; otherwise -1.
int64_t only_token(const uint8_t* mask, int64_t count) {
    int64_t only = -1;
    for (int64_t byte = 0; byte < (count + 7) / 8; ++byte) {
        for (int bits = mask[byte], i = 0; bits != 0; bits >>= 1, ++i) {
            if ((bits & 1) != 0 && 8 * byte + i < count) {
                if (only >= 0) {
                    return -1;
                }
                only = 8 * byte + i;
            }
        }
    }
    return only;
}

// Writes a row of floats, with -infinity for masked tokens.
void mask_row(const Scores& scores, const uint8_t* mask, float* row) {
    constexpr float out = -std::numeric_limits<float>::infinity();
    const auto copy = [&](int64_t first, int64_t count) {
        const int bits = mask[first / 8];
        for (int64_t i = 0; i < count; ++i) {
            row[first + i] = (bits & 1 << i) != 0 ? scores.narrow[first + i] : out;
        }
    };
    const int64_t whole = scores.count / 8 * 8;
    for (int64_t first = 0; first < whole; first += 8) {
        copy(first, 8);
    }
    if (whole < scores.count) {
        copy(whole, scores.count - whole);
    }
}

int64_t draw_masked(const KernelTable& table, const Draw& one) {
    const int64_t only = only_token(one.mask, one.row.count);
    if (only >= 0) {
        return std::isfinite(one.row.narrow[only]) ? only : -1;
    }
    thread_local std::vector<float> row;  // kept: a new one of this size would be mapped and cleared by the system
    row.resize(static_cast<size_t>(one.row.count));
    mask_row(one.row, one.mask, row.data());
    return draw(table, {one.row.count, row.data(), nullptr}, one.sampling);
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
