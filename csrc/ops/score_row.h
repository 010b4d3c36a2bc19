#pragma once

#include <limits>
#include <vector>

#include "isa/kernels.h"
#include "ops/draw.h"

namespace faquant {

double sum_of(const std::vector<double>& values);
double sum_of(const std::vector<Token>& tokens);

// A row and the greatest score of each block, which allows skipping most blocks.
class ScoreRow {
  public:
    ScoreRow(const KernelTable& table, const Scores& scores);

    void set_temperature(double temperature);

    double top() const { return top_; }

    double score(int64_t id) const;

    // The first token with the greatest score.
    int64_t best() const;

    // Tokens with the `count` greatest scores, including all ties, by id; without -infinity.
    std::vector<int64_t> largest(int64_t count) const;

    // The sum of each block's weights.
    std::vector<double> sums() const;

    // The tokens that pass the filters, by id.
    std::vector<Token> kept(const Sampling& sampling) const;

    // Whether only `best` passes the filters, if it is the first token with the greatest score; also if some of the
    // other tokens are ruled out. May miss it by a rounding.
    bool is_alone(int64_t best, const Sampling& sampling) const;

    int64_t draw_of_all(double uniform) const;

  private:
    static constexpr double kLog2E = 1.4426950408889634;

    int64_t blocks() const { return static_cast<int64_t>(maxima_.size()); }

    double weigh(const Scores& scores, int64_t block, double* weights) const;

    static double nth_greatest(std::vector<double>& values, int64_t n);

    std::vector<double> weights_of(const std::vector<double>& scores) const;

    std::vector<Token> weighed(const std::vector<int64_t>& ids) const;

    // Tokens whose weight is at least `bound`.
    std::vector<Token> heavy(double bound) const;

    std::vector<Token> nucleus(double top_p) const;

    const KernelTable& table_;
    const Scores scores_;
    std::vector<double> maxima_;
    double top_ = -std::numeric_limits<double>::infinity(), factor_ = kLog2E;
};

}  // namespace faquant
