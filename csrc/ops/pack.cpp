#include <algorithm>
#include <cstring>

#include "ops/linear.h"
#include "runtime/pool.h"

namespace faquant {
namespace {

// Words of a column that are moved together: a cache line, whose words go to different rows.
constexpr int64_t kWords = 16;

// Transposes `count` words of columns that are `stride` bytes apart to rows of `width` words.
template <int64_t words>
void transpose(const int8_t* columns, int64_t stride, int64_t count, int64_t width, uint32_t* rows) {
    for (int64_t column = 0; column < count; ++column) {
        uint32_t line[words];
        std::memcpy(line, columns + column * stride, sizeof line);
        for (int64_t i = 0; i < words; ++i) {
            rows[i * width + column] = line[i];
        }
    }
}

// Packs `count` rows of `size` bytes as the columns of a panel [depth, width] of words, padded with zeros.
void pack_panel(const int8_t* rows, int64_t count, int64_t bytes, int64_t width, int8_t* panel) {
    const int64_t whole = bytes / 4, depth = (bytes + 3) / 4;
    auto* words = reinterpret_cast<uint32_t*>(panel);
    int64_t i = 0;
    for (; i + kWords <= whole; i += kWords) {
        transpose<kWords>(rows + 4 * i, bytes, count, width, words + i * width);
    }
    for (; i < whole; ++i) {
        transpose<1>(rows + 4 * i, bytes, count, width, words + i * width);
    }
    for (int64_t column = 0; whole < depth && column < count; ++column) {
        uint32_t last = 0;
        std::memcpy(&last, rows + column * bytes + 4 * whole, static_cast<size_t>(bytes - 4 * whole));
        words[whole * width + column] = last;
    }
    for (i = 0; count < width && i < depth; ++i) {
        std::fill(words + i * width + count, words + (i + 1) * width, 0u);
    }
}

// By way of 16-bit sums, which is twice as fast.
int32_t sum_of(const int8_t* x, int64_t count) {
    constexpr int64_t kSome = 128;
    int32_t sum = 0;
    for (int64_t i = 0; i < count; i += kSome) {
        int16_t part = 0;
        for (int64_t j = i; j < std::min(i + kSome, count); ++j) {
            part = static_cast<int16_t>(part + x[j]);
        }
        sum += part;
    }
    return sum;
}

}  // namespace

void pack_float_weight(const void* weight, bool is_bfloat16, int64_t outputs, int64_t inputs, void* packed,
                       int64_t threads) {
    const int64_t row = inputs * (is_bfloat16 ? 2 : 4), depth = (row + 3) / 4, columns = padded_outputs(outputs);
    parallel((columns + kPanel - 1) / kPanel, threads, [&](int64_t panel) {
        const int64_t first = panel * kPanel;
        pack_panel(static_cast<const int8_t*>(weight) + first * row, std::min(kPanel, outputs - first), row,
                   std::min(kPanel, columns - first), static_cast<int8_t*>(packed) + first * depth * 4);
    });
}

void pack_weight(const int8_t* weight, int64_t outputs, int64_t inputs, int8_t* packed, int32_t* totals,
                 int64_t threads) {
    const int64_t depth = padded_inputs(inputs), columns = padded_outputs(outputs);
    parallel((columns + kPanel - 1) / kPanel, threads, [&](int64_t panel) {
        const int64_t first = panel * kPanel, last = std::min(first + kPanel, outputs);
        const int8_t* rows = weight + first * inputs;
        pack_panel(rows, last - first, inputs, std::min(kPanel, columns - first), packed + first * depth);
        for (int64_t n = first; n < last; ++n, rows += inputs) {
            totals[n] = sum_of(rows, inputs);
        }
    });
}

}  // namespace faquant
