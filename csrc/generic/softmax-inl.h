// The softmax over tiles of keys, for one instruction set, shared by all kinds of cache. Float operations are in
// reference.py's order, one rounding each.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/hadamard-inl.h"
#include "generic/numbers-inl.h"
#include "generic/tile_row-inl.h"

void clear(const Partial& partial, int64_t rows, int64_t padded) {
    for (int64_t r = 0; r < rows; ++r) {
        partial.max[r] = -kInfinity;
        partial.sum[r] = 0.0f;
    }
    for (int64_t i = 0; i < rows * padded; ++i) {
        partial.out[i] = 0.0f;
    }
}

// The rows of a strip for one tile: the keys [low, high) that each row sees, and its partial softmax.
struct Strip {
    int64_t low[kStrip], high[kStrip];
    float top[kStrip], sum[kStrip];
    float step[kStrip];   // the scale of P, if V's scales are per token
    float p_sum[kStrip];  // the sum of the integers, if V's scales are static

    int64_t seen_to;  // no row sees this key or later ones
    bool whole;       // whether every row sees the whole tile

    // Up to the last key that any row sees: columns of K, in whole panels, and words of V's columns.
    int64_t columns() const { return (seen_to + kPanel - 1) / kPanel * kPanel; }
    int64_t words() const { return (seen_to + 3) / 4; }
    bool sees(int64_t r) const { return low[r] < high[r]; }
};

// Sets which keys of the tile at `key` a strip sees, whose rows start at r in the block; returns whether it sees any.
bool find_visible(const Attention& a, const Span& span, int64_t first, int64_t r, int64_t count, int64_t key,
                  Strip& strip) {
    const int64_t group = a.scheme->heads / a.scheme->kv_heads;
    bool any = false;
    strip.whole = true;
    strip.seen_to = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t position = span.start + first + (r + i) / group;
        strip.low[i] = smaller(kTile, larger(0, position - a.window + 1 - key));
        strip.high[i] = smaller(kTile, larger(0, position + 1 - key));
        // A tile in which a row sees no key leaves its bits unchanged.
        strip.top[i] = -kInfinity;
        strip.sum[i] = 0.0f;
        any = any || strip.sees(i);
        strip.seen_to = larger(strip.seen_to, strip.high[i]);
        strip.whole = strip.whole && strip.low[i] == 0 && strip.high[i] == kTile;
    }
    return any;
}

// P of row r of a strip before any rounding, in place of its scores.
void probabilities(Strip& strip, int64_t r, float* p) {
    TileRow row;
    row.load(p);
    row.mask(strip.low[r], strip.high[r]);
    strip.top[r] = row.greatest();
    PrefetchSteps nothing = {};
    row.exponentials(strip.top[r], nothing);
    row.write(p);
}

float sum_of_row(const float* p) {
    TileRow row;
    row.load(p);
    return row.sum();
}

// Merges further (max, sum) into running ones, kStrip at a time; computes the factors of the running and the new
// outputs.
struct Weights {
    float old[kStrip], added[kStrip];

    Weights(const float* more_max, const float* more_sum, float* max, float* sum, int64_t count) {
        float finite[kStrip] = {};
        for (int64_t r = 0; r < kStrip; ++r) {
            old[r] = added[r] = 0.0f;
        }
        for (int64_t r = 0; r < count; ++r) {
            const float greatest = greater(max[r], more_max[r]);
            finite[r] = greatest == -kInfinity ? 0.0f : greatest;
            old[r] = max[r];
            added[r] = more_max[r];
            max[r] = greatest;
        }
        const Floats least = all_lanes(-127.0f);
        for (int64_t r = 0; r < kStrip; r += kFloatLanes) {
            const Floats base = load_floats(finite + r);
            store(old + r, exp2_of(greater(load_floats(old + r) - base, least)));
            store(added + r, exp2_of(greater(load_floats(added + r) - base, least)));
        }
        for (int64_t r = 0; r < count; ++r) {
            sum[r] = sum[r] * old[r] + more_sum[r] * added[r];
        }
    }
};

void merge(const Partial& part, const Partial& total, int64_t rows, int64_t padded) {
    for (int64_t r = 0; r < rows; r += kStrip) {
        const int64_t count = smaller(kStrip, rows - r);
        const Weights w(part.max + r, part.sum + r, total.max + r, total.sum + r, count);
        for (int64_t i = 0; i < count; ++i) {
            float* __restrict out = total.out + (r + i) * padded;
            const float* more = part.out + (r + i) * padded;
            const float old = w.old[i], added = w.added[i];
            for (int64_t c = 0; c < padded; ++c) {
                out[c] = out[c] * old + more[c] * added;
            }
        }
    }
}

void finish(const Partial* parts, int64_t count, int64_t rows, const Scheme& s, const Partial& total) {
    const int64_t padded = padded_dim(s.dim);
    for (int64_t i = 0; i < count; ++i) {
        merge(parts[i], total, rows, padded);
    }
    for (int64_t r = 0; r < rows; ++r) {
        float* out = total.out + r * padded;
        for (int64_t c = 0; c < s.dim; ++c) {
            out[c] /= total.sum[r];
        }
        if (s.v_rotation_block != 0) {
            hadamard(out, s.dim, s.v_rotation_block);
        }
    }
}
