#pragma once

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/draw.h"
#include "python/arrays.h"

// (temperature, top_k, top_p, min_p, uniform)
using SamplingTuple = std::tuple<double, int64_t, double, double, double>;

inline faquant::Sampling sampling_of(const SamplingTuple& tuple) {
    const auto [temperature, top_k, top_p, min_p, uniform] = tuple;
    return {temperature, top_k, top_p, min_p, uniform};
}

// The rows of scores [rows, vocab], float64 or float32, by address; checked in Python.
inline std::vector<faquant::Scores> rows_of(uintptr_t scores, bool is_wide, int64_t rows, int64_t vocab) {
    const auto* wide = reinterpret_cast<const double*>(scores);
    const auto* narrow = reinterpret_cast<const float*>(scores);
    std::vector<faquant::Scores> all;
    for (int64_t i = 0; i < rows; ++i) {
        all.push_back(is_wide ? faquant::Scores{vocab, nullptr, wide + i * vocab}
                              : faquant::Scores{vocab, narrow + i * vocab, nullptr});
    }
    return all;
}

// draws: (row, address of a mask of (vocab + 7) / 8 bytes, only for float32, or 0, sampling, before_mask)
inline std::vector<int64_t> draw(uintptr_t scores, bool is_wide, int64_t vocab, int64_t rows,
                                 const std::vector<std::tuple<int64_t, uintptr_t, SamplingTuple, bool>>& draws,
                                 int64_t threads, const std::optional<std::string>& isa) {
    const auto all_rows = rows_of(scores, is_wide, rows, vocab);
    std::vector<faquant::Draw> all;
    for (const auto& [row, mask, sampling, before_mask] : draws) {
        all.push_back({all_rows.at(static_cast<size_t>(row)), reinterpret_cast<const uint8_t*>(mask),
                       sampling_of(sampling), before_mask});
    }
    const faquant::KernelTable& table = kernels(isa);
    nb::gil_scoped_release unlocked;
    return faquant::draw(table, all, threads_of(threads));
}

inline std::vector<std::pair<int64_t, double>> distribution(uintptr_t scores, bool is_wide, int64_t vocab,
                                                            const SamplingTuple& sampling,
                                                            const std::optional<std::string>& isa) {
    std::vector<std::pair<int64_t, double>> tokens;
    const faquant::Scores row = rows_of(scores, is_wide, 1, vocab)[0];
    for (const faquant::Token& token : faquant::distribution(kernels(isa), row, sampling_of(sampling))) {
        tokens.emplace_back(token.id, token.weight);
    }
    return tokens;
}

// [(log of the sum, [(token, score)])]
inline std::vector<std::pair<double, std::vector<std::pair<int64_t, double>>>> likeliest(
    uintptr_t scores, bool is_wide, int64_t vocab, const std::vector<int64_t>& counts, int64_t threads,
    const std::optional<std::string>& isa) {
    const auto rows = rows_of(scores, is_wide, static_cast<int64_t>(counts.size()), vocab);
    const faquant::KernelTable& table = kernels(isa);
    nb::gil_scoped_release unlocked;
    std::vector<std::pair<double, std::vector<std::pair<int64_t, double>>>> results;
    for (faquant::Likeliest& row : faquant::likeliest(table, rows, counts, threads_of(threads))) {
        results.emplace_back(row.log_sum, std::move(row.tokens));
    }
    return results;
}
