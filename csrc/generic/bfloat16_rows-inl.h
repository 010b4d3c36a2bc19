// A bfloat16 cache, for one instruction set.
// The softmax is in softmax-inl.h, and the products are float products. They must have the same bits with and without
// fused multiply-add, so they are exact: K and V have 8 significant bits, and q and P are rounded to 16, which makes 24
// bits as in float32. Values below 2^-62 become zero, so that no product is subnormal.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/multiply_rows-inl.h"
#include "generic/quantize_rows-inl.h"
#include "generic/softmax-inl.h"

constexpr uint32_t kLeastFactor = (127u - 62u) << 23;

// Rounds to 16 significant bits, halves to even.
float factor_of(float x) {
    const uint32_t bits = bits_of(x), rounded = (bits + 0x7fu + ((bits >> 8) & 1)) & ~0xffu;
    const float factor = float_of((rounded & 0x7fffffffu) < kLeastFactor ? 0u : rounded);
    return x != x ? x : factor;
}

// The nearest bfloat16, halves to even.
uint16_t bfloat16_of(float x) {
    if (x != x) {
        return 0x7fc0;
    }
    const uint32_t bits = bits_of(x), rounded = bits + 0x7fffu + ((bits >> 16) & 1);
    return (rounded & 0x7fffffffu) < kLeastFactor ? uint16_t{0} : static_cast<uint16_t>(rounded >> 16);
}

void append_bfloat16(const Scheme& s, const Cache& c, const float* k, const float* v, const int64_t* slots,
                     int64_t first, int64_t last) {
    const int64_t padded = padded_dim(s.dim);
    for (int64_t token = first; token < last; ++token) {
        const int64_t key = slots[token] % c.page_size;
        for (int64_t head = 0; head < s.kv_heads; ++head) {
            const int64_t tile =
                slots[token] / c.page_size * c.stride + (head * c.page_size + key / kTile * kTile) * padded;
            uint16_t* k_tile = c.bfloat16_k + tile;
            uint16_t* v_tile = c.bfloat16_v + tile;
            const int64_t at = (token * s.kv_heads + head) * s.dim;
            for (int64_t i = 0; i < padded; ++i) {
                // Zero in the padding channels: NaN times q's zeros would be NaN.
                k_tile[packed_at<2>(i, key % kTile, padded, kTile)] = i < s.dim ? bfloat16_of(k[at + i]) : uint16_t{0};
            }
            for (int64_t i = 0; i < s.dim; ++i) {
                v_tile[packed_at<2>(key % kTile, i, kTile, padded)] = bfloat16_of(v[at + i]);
            }
        }
    }
}

// A tile of V with zeros for invisible keys, which may be NaN.
void copy_seen(const uint16_t* v, int64_t low, int64_t high, int64_t padded, uint16_t* seen) {
    for (int64_t j = 0; j < padded; j += kPanel) {
        const int64_t width = smaller(kPanel, padded - j);
        for (int64_t key = 0; key < kTile; key += 2, v += 2 * width, seen += 2 * width) {
            const bool first = low <= key && key < high, second = low <= key + 1 && key + 1 < high;
            for (int64_t c = 0; c < 2 * width; c += 2) {
                seen[c] = first ? v[c] : uint16_t{0};
                seen[c + 1] = second ? v[c + 1] : uint16_t{0};
            }
        }
    }
}

void attend_bfloat16(const Attention& a, const Span& span, int64_t kv_head, int64_t first, int64_t last, int64_t begin,
                     int64_t end, const Scratch& scratch, const Partial& total) {
    const Scheme& s = *a.scheme;
    const Cache& cache = *a.cache;
    const int64_t group = s.heads / s.kv_heads;
    const int64_t rows = (last - first) * group;
    const int64_t padded = padded_dim(s.dim);
    const int64_t seen_to = span.start + last;
    const int64_t oldest = larger(0, span.start + first - a.window + 1);
    const int64_t stop = smaller(end, seen_to);
    const int64_t lines = kTile * padded * 2 / kCacheLine;
    const float unit = static_cast<float>(1.4426950408889634 / __builtin_sqrt(static_cast<double>(s.dim)));

    const auto tile_at = [&](const uint16_t* store, int64_t key) {
        return store + span.block_table[key / cache.page_size] * cache.stride +
               (kv_head * cache.page_size + key % cache.page_size) * padded;
    };

    for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = (span.first + first + r / group) * s.heads + kv_head * group + r % group;
        for (int64_t c = 0; c < padded; ++c) {
            scratch.factors[r * padded + c] = c < s.dim ? factor_of(a.q[row * s.dim + c] * unit) : 0.0f;
        }
    }
    Strip strip;
    float p[kStrip * kTile];
    clear(total, rows, padded);
    for (int64_t split = larger(begin, oldest / a.split * a.split); split < stop; split += a.split) {
        clear(scratch.split, rows, padded);
        const int64_t split_end = smaller(split + a.split, stop);
        for (int64_t key = larger(split, oldest / kTile * kTile); key < split_end; key += kTile) {
            const auto* k = reinterpret_cast<const uint8_t*>(tile_at(cache.bfloat16_k, key));
            const uint16_t* v = tile_at(cache.bfloat16_v, key);
            const int64_t low = larger(0, oldest - key), high = smaller(kTile, seen_to - key);
            Prefetch this_v = {reinterpret_cast<const char*>(v), lines}, next_k = {};
            if (low > 0 || high < kTile) {
                copy_seen(v, low, high, padded, scratch.v);
                v = scratch.v;
                this_v.lines = 0;
            }
            if (key + kTile < stop) {
                next_k = {reinterpret_cast<const char*>(tile_at(cache.bfloat16_k, key + kTile)), lines};
            }
            for (int64_t r = 0; r < rows; r += kStrip) {
                const int64_t count = smaller(kStrip, rows - r);
                if (!find_visible(a, span, first, r, count, key, strip)) {
                    continue;
                }
                multiply(scratch.factors + r * padded, padded, count, {k, padded / 2}, padded / 2, kTile, p, kTile,
                         this_v);
                const int64_t meanwhile = next_k.lines / (2 * count);
                for (int64_t i = 0; i < count; ++i) {
                    next_k.take(meanwhile).fetch();
                    if (strip.sees(i)) {
                        float* row = p + i * kTile;
                        probabilities(strip, i, row);
                        for (int64_t j = 0; j < kTile; ++j) {
                            row[j] = factor_of(row[j]);
                        }
                        strip.sum[i] = sum_of_row(row);
                    }
                }
                multiply(p, kTile, count, {reinterpret_cast<const uint8_t*>(v), kTile / 2}, kTile / 2, padded,
                         scratch.sums, padded, next_k);
                const Weights w(strip.top, strip.sum, scratch.split.max + r, scratch.split.sum + r, count);
                for (int64_t i = 0; i < count; ++i) {
                    if (strip.sees(i)) {
                        float* __restrict out = scratch.split.out + (r + i) * padded;
                        const float* sums = scratch.sums + i * padded;
                        for (int64_t c = 0; c < padded; ++c) {
                            out[c] = out[c] * w.old[i] + sums[c] * w.added[i];
                        }
                    }
                }
                this_v.lines = next_k.lines = 0;
            }
        }
        merge(scratch.split, total, rows, padded);
    }
}
