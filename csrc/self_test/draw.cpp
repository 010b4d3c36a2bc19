#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "self_test/parts.h"

namespace faquant {
namespace {

// Three blocks, the last one short, with scores up to 0, some of which underflow to weight 0.
std::vector<float> scores_of_blocks(float unit) {
    Random random;
    std::vector<float> scores = random.floats(2 * kBlock + 9, unit, -127 * unit);
    scores[0] = 0.0f;
    scores[kBlock] = -1e30f;
    return scores;
}

}  // namespace

const char* wrong_kernel_in_maxima(const KernelTable& table) {
    std::vector<float> scores = scores_of_blocks(0.1f);
    const std::vector<double> wide(scores.begin(), scores.end());
    const auto count = static_cast<int64_t>(scores.size());
    std::vector<double> exact;
    for (auto block = wide.begin(); block < wide.end(); block += std::min<std::ptrdiff_t>(kBlock, wide.end() - block)) {
        exact.push_back(*std::max_element(block, block + std::min<std::ptrdiff_t>(kBlock, wide.end() - block)));
    }
    std::vector<float> with_nan = scores;
    with_nan[3] = std::numeric_limits<float>::quiet_NaN();
    const auto run = [&](const KernelTable& kernels) {
        std::vector<float> out;
        for (const Scores& row : {Scores{count, scores.data(), nullptr},
                                  {count, nullptr, wide.data()},
                                  {count, with_nan.data(), nullptr}}) {
            double maxima[3];
            kernels.block_maxima(row, maxima);
            out.insert(out.end(), maxima, maxima + 3);
        }
        return out;
    };
    return wrong_kernel_in(table, "block_maxima", run, exact, 0.0);
}

const char* wrong_kernel_in_weights(const KernelTable& table) {
    const std::vector<float> scores = scores_of_blocks(6.0f);
    const std::vector<double> wide(scores.begin(), scores.end());
    const auto count = static_cast<int64_t>(scores.size());
    std::vector<double> exact;
    for (const float score : scores) {
        exact.push_back(std::exp2(0.7 * score));
    }
    const auto run = [&](const KernelTable& kernels) {
        std::vector<float> out, rest;
        for (const Scores& row : {Scores{count, scores.data(), nullptr}, {count, nullptr, wide.data()}}) {
            double weights[3 * kBlock + 3];
            for (int64_t block = 0; block < 3; ++block) {
                weights[3 * kBlock + block] = kernels.block_weights(row, block, 0.0, 0.7, weights + block * kBlock);
            }
            for (const double weight : weights) {
                out.push_back(static_cast<float>(weight));
                rest.push_back(static_cast<float>(weight - static_cast<double>(out.back())));
            }
        }
        out.insert(out.end(), rest.begin(), rest.end());
        return out;
    };
    return wrong_kernel_in(table, "block_weights", run, exact, 1e-7);
}

}  // namespace faquant
