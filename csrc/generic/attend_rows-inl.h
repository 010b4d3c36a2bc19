// The attention of a block of rows with an int8 cache, for one instruction set. Float operations are in reference.py's
// order, one rounding each.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/int8_softmax-inl.h"
#include "generic/multiply_rows-inl.h"
#include "generic/quantize_rows-inl.h"
#include "generic/softmax-inl.h"

// half_to_float for kTile numbers; defined per unit, because a select in this loop would take a tenth of the decode
// time.
void halves_to_floats(const uint16_t* halves, float* floats);

// out = out · old + (∑ P·V in V's units) · added, for one row.
template <bool wide, bool token_v>
void add_tile(const Scheme& s, int64_t kv_head, const Strip& strip, int64_t r, const int32_t* sums, float old,
              float added, float* __restrict out, int64_t padded) {
    const auto products = [&](int64_t c) {
        return static_cast<float>(wide ? sums[c] * 256 + sums[padded + c] : sums[c]);
    };
    if constexpr (token_v) {
        const float step = strip.step[r];
        for (int64_t c = 0; c < padded; ++c) {
            out[c] = out[c] * old + products(c) * step * added;
        }
        return;
    }
    const float* v_scale = s.v_scale + kv_head * s.dim;
    const float unit = static_cast<float>(1.0 / s.p_levels);
    if (s.v_offset != nullptr) {
        const float* v_offset = s.v_offset + kv_head * s.dim;
        const float p_sum = strip.p_sum[r];
        for (int64_t c = 0; c < s.dim; ++c) {
            out[c] = out[c] * old + (products(c) - p_sum * v_offset[c]) * unit * v_scale[c] * added;
        }
    } else {
        for (int64_t c = 0; c < s.dim; ++c) {
            out[c] = out[c] * old + products(c) * unit * v_scale[c] * added;
        }
    }
}

void read_scales(const uint16_t* halves, int64_t at, int64_t low, int64_t high, float* scales) {
    if (halves == nullptr) {
        for (int64_t j = 0; j < kTile; ++j) {
            scales[j] = 1.0f;
        }
        return;
    }
    halves_to_floats(halves + at, scales);
    // Invisible values may be NaN.
    for (int64_t j = 0; j < low; ++j) {
        scales[j] = 0.0f;
    }
    for (int64_t j = high; j < kTile; ++j) {
        scales[j] = 0.0f;
    }
}

template <bool wide, bool token_v>
int64_t attend_block(const Attention& a, const Span& span, int64_t kv_head, int64_t first, int64_t last, int64_t begin,
                     int64_t end, const Scratch& scratch, const Partial& total) {
    const Scheme& s = *a.scheme;
    const Cache& cache = *a.cache;
    constexpr int64_t kPlanes = wide ? 2 : 1;
    const int64_t group = s.heads / s.kv_heads;
    const int64_t rows = (last - first) * group;
    const int64_t padded = padded_dim(s.dim);
    const int64_t seen_to = span.start + last;
    const int64_t oldest = larger(0, span.start + first - a.window + 1);
    const int64_t stop = smaller(end, seen_to);
    // Whether the sequence has centers of more than one map, as in reference.attend.
    const bool shifted = smaller(s.maps, (span.start + span.tokens + s.map_block - 1) / s.map_block) > 1;
    const int64_t last_map = map_of(s, seen_to - 1);

    // Where the key's row of this head is, among rows of `width` elements in pages of `stride`.
    const auto place = [&](int64_t key, int64_t stride, int64_t width) {
        return span.block_table[key / cache.page_size] * stride +
               (kv_head * cache.page_size + key % cache.page_size) * width;
    };

    const Multiplying<uint8_t> multiplying(smaller(kStrip, rows) * kPlanes);
    int64_t map = -1, saturated = 0;
    Tile tile;
    Strip strip;
    clear(total, rows, padded);
    for (int64_t split = larger(begin, oldest / a.split * a.split); split < stop; split += a.split) {
        clear(scratch.split, rows, padded);
        const int64_t split_end = smaller(split + a.split, stop);
        for (int64_t key = larger(split, oldest / kTile * kTile); key < split_end; key += kTile) {
            if (map != map_of(s, key)) {
                map = map_of(s, key);
                for (int64_t r = 0; r < rows; ++r) {
                    const int64_t head = kv_head * group + r % group;
                    const int64_t token = span.first + first + r / group;
                    const Query query = map_query(s, map, head, a.q + (token * s.heads + head) * s.dim, shifted,
                                                  scratch.q + r * padded);
                    scratch.scale[r] = query.scale;
                    scratch.bias[r] = query.bias;
                    scratch.excess[r] = query.excess;
                    // Each query is counted once, whatever maps and threads use it.
                    saturated += map == last_map && end >= seen_to ? query.saturated : 0;
                }
            }
            const int64_t at = place(key, cache.stride, padded), scales_at = place(key, cache.scale_stride, 1);
            tile.k = cache.k + at;
            tile.v = cache.v + at;
            const int64_t low = larger(0, oldest - key), high = smaller(kTile, seen_to - key);
            read_scales(cache.k_scale, scales_at, low, high, tile.k_scale);
            if constexpr (token_v) {
                read_scales(cache.v_scale, scales_at, low, high, tile.v_scale);
            }
            const int64_t lines = kTile * padded / kCacheLine;
            // Both are fetched at an even pace during the work on this tile, which a burst of prefetches would stall.
            Prefetch next_k = {}, next_v = {};
            if (key + kTile < stop) {
                const int64_t next = place(key + kTile, cache.stride, padded);
                next_k = {reinterpret_cast<const char*>(cache.k + next), lines};
                next_v = {reinterpret_cast<const char*>(cache.v + next), lines};
            }
            for (int64_t r = 0; r < rows; r += kStrip) {
                const int64_t count = smaller(kStrip, rows - r);
                if (!find_visible(a, span, first, r, count, key, strip)) {
                    continue;
                }
                multiply<true>(reinterpret_cast<const uint8_t*>(scratch.q + r * padded), padded, count,
                               {tile.k, padded / 4}, padded / 4, strip.columns(), scratch.products, kTile,
                               next_k.take(next_k.lines / 3));
                const Queries queries = {scratch.excess + r, scratch.scale + r, scratch.bias + r};
                softmax_strip<wide, token_v>(s, tile, queries, count, scratch.products, strip, scratch.p, next_k,
                                             next_v.take(next_v.lines / 3));
                multiply<false>(scratch.p, kTile, count * kPlanes,
                                {reinterpret_cast<const uint8_t*>(tile.v), kTile / 4}, strip.words(), padded,
                                scratch.products, padded, next_v);
                const Weights w(strip.top, strip.sum, scratch.split.max + r, scratch.split.sum + r, count);
                for (int64_t i = 0; i < count; ++i) {
                    if (strip.sees(i)) {
                        add_tile<wide, token_v>(s, kv_head, strip, i, scratch.products + i * kPlanes * padded, w.old[i],
                                                w.added[i], scratch.split.out + (r + i) * padded, padded);
                    }
                }
                next_k.lines = next_v.lines = 0;
            }
        }
        merge(scratch.split, total, rows, padded);
    }
    return saturated;
}

int64_t attend_int8(const Attention& a, const Span& span, int64_t kv_head, int64_t first, int64_t last, int64_t begin,
                    int64_t end, const Scratch& scratch, const Partial& total) {
    const bool token_v = a.scheme->v_scale == nullptr;
    if (a.scheme->p_levels > 255) {
        return (token_v ? attend_block<true, true> : attend_block<true, false>)(a, span, kv_head, first, last, begin,
                                                                                end, scratch, total);
    }
    return (token_v ? attend_block<false, true> : attend_block<false, false>)(a, span, kv_head, first, last, begin, end,
                                                                              scratch, total);
}
