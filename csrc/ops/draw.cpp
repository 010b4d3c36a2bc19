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

// A row of floats with -infinity for masked tokens.
std::vector<float> masked(const Scores& scores, const uint8_t* mask) {
    std::vector<float> row(static_cast<size_t>(scores.count), -std::numeric_limits<float>::infinity());
    for (int64_t first = 0; first < scores.count; first += 8) {
        const int bits = mask[first / 8];
        for (int64_t i = first; bits != 0 && i < std::min(first + 8, scores.count); ++i) {
            if ((bits >> (i - first) & 1) != 0) {
                row[static_cast<size_t>(i)] = scores.narrow[i];
            }
        }
    }
    return row;
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
        if (one.mask == nullptr) {
            tokens[i] = draw(table, one.row, one.sampling);
        } else {
            const std::vector<float> scores = masked(one.row, one.mask);
            tokens[i] = draw(table, {one.row.count, scores.data(), nullptr}, one.sampling);
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
