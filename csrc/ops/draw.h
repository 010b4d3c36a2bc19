#pragma once

#include <utility>
#include <vector>

#include "isa/kernels.h"

namespace faquant {

// How a row's token is drawn, as SamplingParams says; top_k <= 0: no filter.
struct Sampling {
    double temperature;
    int64_t top_k;
    double top_p, min_p;
    double uniform;  // in [0, 1): where the draw falls in the kept tokens' probabilities, laid side by side by id
};

// A token with its probability as a share of the likeliest's.
struct Token {
    int64_t id;
    double weight;
};

// One of the rows, and of which of its tokens: token n where bit n % 8, from the lowest, of byte n // 8 is set;
// nullptr: of all.
struct Draw {
    Scores row;
    const uint8_t* mask;
    Sampling sampling;
};

// A token for each; -1 where the greatest score is not finite. It depends on nothing but that draw.
std::vector<int64_t> draw(const KernelTable& table, const std::vector<Draw>& draws, int64_t threads);

// What the filters leave of a row whose greatest score is finite, by id.
std::vector<Token> distribution(const KernelTable& table, const Scores& scores, const Sampling& sampling);

// The logarithm of the sum of e^score of a row, and the tokens of its greatest scores above -infinity with them, the
// greatest first, then by id.
struct Likeliest {
    double log_sum = 0.0;
    std::vector<std::pair<int64_t, double>> tokens;
};

// Of each row with so many tokens; nothing where the count is negative.
std::vector<Likeliest> likeliest(const KernelTable& table, const std::vector<Scores>& rows,
                                 const std::vector<int64_t>& counts, int64_t threads);

}  // namespace faquant
