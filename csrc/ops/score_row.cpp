#include "ops/score_row.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <functional>
#include <numeric>

namespace faquant {
namespace {

// log2(e) divided by it is finite; lower temperatures are as greedy as this one.
constexpr double kColdest = 1e-300;
// Below 1 by a margin for the rounding of sums.
constexpr double kSurely = 1.0 - 1e-9;
// Histogram of weights in [0, 1] by their leading bits: 32 bins per power of two, greatest weights first.
constexpr int64_t kRanges = 1 << 10;

size_t range_of(double weight) {
    uint64_t bits;
    std::memcpy(&bits, &weight, sizeof bits);
    return std::min<uint64_t>(((uint64_t{1023} << 52) - bits) >> 47, kRanges - 1);
}

// Keeps the fewest likeliest tokens whose weights sum up to `mass`, lower ids first among equal ones; or all.
void keep_nucleus(std::vector<Token>& tokens, double mass) {
    double sums[kRanges] = {};
    for (const Token& token : tokens) {
        sums[range_of(token.weight)] += token.weight;
    }
    double before = 0.0;
    size_t range = 0;
    for (; range + 1 < kRanges && before + sums[range] < mass; ++range) {
        before += sums[range];
    }
    std::vector<double> weights;
    for (const Token& token : tokens) {
        if (range_of(token.weight) == range) {
            weights.push_back(token.weight);
        }
    }
    std::sort(weights.begin(), weights.end(), std::greater<>());
    // A token is kept while the sum of the previous ones is less than the mass.
    size_t count = 0;
    while (count < weights.size() && before < mass) {
        before += weights[count++];
    }
    const double least = count == 0 ? 0.0 : weights[count - 1];
    auto equal = std::count(weights.begin(), weights.begin() + static_cast<std::ptrdiff_t>(count), least);
    const auto goes = [&](const Token& token) {
        return token.weight < least || (token.weight == least && equal-- <= 0);
    };
    tokens.erase(std::remove_if(tokens.begin(), tokens.end(), goes), tokens.end());
}

}  // namespace

double sum_of(const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0);
}

double sum_of(const std::vector<Token>& tokens) {
    return std::accumulate(tokens.begin(), tokens.end(), 0.0,
                           [](double sum, const Token& token) { return sum + token.weight; });
}

ScoreRow::ScoreRow(const KernelTable& table, const Scores& scores)
    : table_(table), scores_(scores), maxima_(static_cast<size_t>((scores.count + kBlock - 1) / kBlock)) {
    table.block_maxima(scores, maxima_.data());
    for (const double max : maxima_) {
        top_ = max > top_ || std::isnan(max) ? max : top_;
    }
}

void ScoreRow::set_temperature(double temperature) {
    factor_ = kLog2E / std::max(temperature, kColdest);
}

double ScoreRow::score(int64_t id) const {
    return scores_.narrow != nullptr ? static_cast<double>(scores_.narrow[id]) : scores_.wide[id];
}

int64_t ScoreRow::best() const {
    int64_t id = kBlock * (std::find(maxima_.begin(), maxima_.end(), top_) - maxima_.begin());
    while (score(id) != top_) {
        ++id;
    }
    return id;
}

std::vector<int64_t> ScoreRow::largest(int64_t count) const {
    double bound = std::numeric_limits<double>::lowest();
    if (count <= blocks()) {
        // The count-th greatest of all scores is at least that of a subset.
        std::vector<double> some = maxima_;
        bound = std::max(bound, nth_greatest(some, count));
    }
    std::vector<int64_t> ids;
    std::vector<double> found;
    for (int64_t block = 0; block < blocks(); ++block) {
        if (maxima_[static_cast<size_t>(block)] < bound) {
            continue;
        }
        for (int64_t id = block * kBlock; id < std::min((block + 1) * kBlock, scores_.count); ++id) {
            if (score(id) >= bound) {
                ids.push_back(id);
                found.push_back(score(id));
            }
        }
    }
    if (static_cast<int64_t>(ids.size()) > count) {
        const double last = nth_greatest(found, count);
        ids.erase(std::remove_if(ids.begin(), ids.end(), [&](int64_t id) { return score(id) < last; }), ids.end());
    }
    return ids;
}

std::vector<double> ScoreRow::sums() const {
    std::vector<double> sums;
    double weights[kBlock];
    for (int64_t block = 0; block < blocks(); ++block) {
        // Blocks that are masked completely have weight 0.
        const bool is_out = maxima_[static_cast<size_t>(block)] == -std::numeric_limits<double>::infinity();
        sums.push_back(is_out ? 0.0 : weigh(scores_, block, weights));
    }
    return sums;
}

std::vector<Token> ScoreRow::kept(const Sampling& sampling) const {
    std::vector<Token> tokens;
    if (0 < sampling.top_k && sampling.top_k < scores_.count) {
        tokens = weighed(largest(sampling.top_k));
        if (sampling.top_p < 1.0) {
            keep_nucleus(tokens, sampling.top_p * sum_of(tokens));
        }
    } else if (sampling.top_p < 1.0) {
        tokens = nucleus(sampling.top_p);
    } else {
        return heavy(sampling.min_p);
    }
    const auto is_light = [&](const Token& token) { return token.weight < sampling.min_p; };
    tokens.erase(std::remove_if(tokens.begin(), tokens.end(), is_light), tokens.end());
    return tokens;
}

bool ScoreRow::is_alone(int64_t best, const Sampling& sampling) const {
    const std::vector<double> peaks = weights_of(maxima_);
    const int64_t own = best / kBlock;
    double weights[kBlock];
    weigh(scores_, own, weights);
    weights[best % kBlock] = 0.0;
    double second = 0.0, others = 0.0, least = 0.0;  // the sum of the others' weights, and a lower bound
    for (const double weight : weights) {
        second = std::max(second, weight);
        others += weight;
    }
    for (int64_t block = 0; block < blocks(); ++block) {
        const double peak = block == own ? 0.0 : peaks[static_cast<size_t>(block)];
        second = std::max(second, peak);
        least += peak;
    }
    if (second < sampling.min_p || (sampling.top_k == 1 && second < 1.0)) {
        return true;
    }
    // The best one, whose weight is 1, is the nucleus if it has the share top_p, which grows if others are ruled out.
    const auto is_enough = [&](double rest) { return sampling.top_p * (1.0 + rest) < kSurely; };
    // Lighter tokens have less than 1 - top_p in total.
    const double light = (1.0 - sampling.top_p) / static_cast<double>(scores_.count);
    bool is_nucleus = is_enough(others + least);
    for (int64_t block = 0; is_nucleus && block < blocks(); ++block) {
        const double peak = peaks[static_cast<size_t>(block)];
        if (block != own) {
            others += peak < light ? static_cast<double>(kBlock) * peak : weigh(scores_, block, weights);
            is_nucleus = is_enough(others);
        }
    }
    return is_nucleus;
}

int64_t ScoreRow::draw_of_all(double uniform) const {
    const std::vector<double> sums = this->sums();
    const double point = uniform * sum_of(sums);
    double before = 0.0;
    size_t block = 0;
    for (; before + sums[block] <= point; ++block) {
        before += sums[block];
    }
    double weights[kBlock];
    weigh(scores_, static_cast<int64_t>(block), weights);
    // Because of rounding, the sum may end before the point: then draw the last possible token.
    int64_t drawn = 0;
    for (int64_t i = 0; i < kBlock && before <= point; ++i) {
        drawn = weights[i] > 0.0 ? i : drawn;
        before += weights[i];
    }
    return static_cast<int64_t>(block) * kBlock + drawn;
}

double ScoreRow::weigh(const Scores& scores, int64_t block, double* weights) const {
    return table_.block_weights(scores, block, top_, factor_, weights);
}

double ScoreRow::nth_greatest(std::vector<double>& values, int64_t n) {
    std::nth_element(values.begin(), values.begin() + (n - 1), values.end(), std::greater<>());
    return values[static_cast<size_t>(n - 1)];
}

std::vector<double> ScoreRow::weights_of(const std::vector<double>& scores) const {
    const auto count = static_cast<int64_t>(scores.size());
    std::vector<double> weights((scores.size() + kBlock - 1) / kBlock * kBlock);
    for (int64_t block = 0; block * kBlock < count; ++block) {
        weigh({count, nullptr, scores.data()}, block, weights.data() + block * kBlock);
    }
    return weights;
}

std::vector<Token> ScoreRow::weighed(const std::vector<int64_t>& ids) const {
    std::vector<double> scores;
    for (const int64_t id : ids) {
        scores.push_back(score(id));
    }
    const std::vector<double> weights = weights_of(scores);
    std::vector<Token> tokens;
    for (size_t i = 0; i < ids.size(); ++i) {
        tokens.push_back({ids[i], weights[i]});
    }
    return tokens;
}

std::vector<Token> ScoreRow::heavy(double bound) const {
    const std::vector<double> peaks = weights_of(maxima_);
    std::vector<Token> tokens;
    double weights[kBlock];
    for (int64_t block = 0; block < blocks(); ++block) {
        if (peaks[static_cast<size_t>(block)] < bound) {
            continue;
        }
        weigh(scores_, block, weights);
        for (int64_t i = 0; i < std::min(kBlock, scores_.count - block * kBlock); ++i) {
            if (weights[i] >= bound) {
                tokens.push_back({block * kBlock + i, weights[i]});
            }
        }
    }
    return tokens;
}

// Holtzman et al. 2020, arXiv:1904.09751, section 3.1. Tokens with less than (1 - top_p) / vocab have less than
// 1 - top_p in total, so the others suffice; usually those with eight times as much do.
std::vector<Token> ScoreRow::nucleus(double top_p) const {
    const double total = sum_of(sums()), mass = top_p * total;
    const double least = (1.0 - top_p) / static_cast<double>(scores_.count) * total;
    std::vector<Token> tokens;
    for (const double bound : {8 * least, least, 0.0}) {
        tokens = heavy(bound);
        if (sum_of(tokens) >= mass) {
            break;
        }
    }
    keep_nucleus(tokens, mass);
    return tokens;
}

}  // namespace faquant
