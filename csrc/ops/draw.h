#pragma once

#include <utility>
#include <vector>

#include "isa/kernels.h"

namespace faquant {

// How a token is drawn, as in SamplingParams; top_k <= 0: no filter.
struct Sampling {
    double temperature;
    int64_t top_k;
    double top_p, min_p;
    double uniform;  // in [0, 1): where the draw falls in the kept tokens' probabilities, laid side by side by id
};

// A token with its probability relative to the likeliest one.
struct Token {
    int64_t id;
    double weight;
};

// A row, and a mask of its tokens: token n is allowed if bit n % 8, from the lowest, of byte n // 8 is set; nullptr:
// all are. `before_mask`: draw only a token that is the draw of every mask that allows it.
struct Draw {
    Scores row;
    const uint8_t* mask;
    Sampling sampling;
    bool before_mask;
};

// A token for each draw, -1 if the greatest score is not finite, or -2 if the draw needs the mask. It depends only on
// that draw.
std::vector<int64_t> draw(const KernelTable& table, const std::vector<Draw>& draws, int64_t threads);

// The tokens that pass the filters, by id, for a row with a finite greatest score.
std::vector<Token> distribution(const KernelTable& table, const Scores& scores, const Sampling& sampling);

// The logarithm of the sum of e^score over a row, and the tokens with the greatest scores above -infinity, greatest
// first, then by id.
struct Likeliest {
    double log_sum = 0.0;
    std::vector<std::pair<int64_t, double>> tokens;
};

// For each row with `count` tokens; empty if the count is negative.
std::vector<Likeliest> likeliest(const KernelTable& table, const std::vector<Scores>& rows,
                                 const std::vector<int64_t>& counts, int64_t threads);

}  // namespace faquant
