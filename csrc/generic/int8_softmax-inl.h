// The softmax of a strip's rows with an int8 cache, from products with K + 128 to the bytes of P, for one instruction
// set. Float operations are in reference.py's order, one rounding each.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/quantize_rows-inl.h"
#include "generic/softmax-inl.h"
#include "generic/tile_row-inl.h"

// The data that the rows of a block share for one tile.
struct Tile {
    const uint8_t* k;
    const int8_t* v;
    float k_scale[kTile];
    float v_scale[kTile];
};

// The queries of a strip, as map_query leaves them.
struct Queries {
    const int32_t* excess;
    const float* scale;
    const float* bias;
};

// Rounds to float16's precision, for values up to 65504; values below 2^-14 become the integer 0 anyway.
FAQUANT_INLINE Floats through_half(Floats x) {
    const Ints bits = bits_of(x);
    return float_of((bits + 0xfff + ((bits >> 13) & 1)) & ~0x1fff);
}

// P of a row times `factor` as integers: a row of bytes, or for 16-bit P one of high and one of low bytes. Returns
// their sum if `summed`.
template <bool wide, bool summed, bool by_half>
FAQUANT_INLINE int32_t round_p(const TileRow& row, float factor, uint8_t* bytes, PrefetchSteps& next) {
    int32_t integers[kTile];
    Ints total{};
    FAQUANT_EACH_VECTOR {
        fetch_at(i, next);
        const Floats p = row.x[i] * factor;
        const Ints rounded = bits_of((by_half ? through_half(p) : p) + kRounder) & 0x7fff;
        if constexpr (summed) {
            total += rounded;
        }
        __builtin_memcpy(integers + i * kFloatLanes, &rounded, sizeof rounded);
    }
    if constexpr (wide) {
        for (int64_t j = 0; j < kTile; ++j) {
            bytes[j] = static_cast<uint8_t>(integers[j] >> 8);
        }
        bytes += kTile;
    }
    for (int64_t j = 0; j < kTile; ++j) {
        bytes[j] = static_cast<uint8_t>(integers[j]);
    }
    int32_t sum = 0;
    for (int64_t lane = 0; summed && lane < kFloatLanes; ++lane) {
        sum += total[lane];
    }
    return sum;
}

// Rows whose softmax is computed together, so that the reductions of one hide the latency of the other's.
constexpr int64_t kTogether = 2;
#define FAQUANT_EACH_ROW FAQUANT_UNROLL for (int64_t n = 0; n < together; ++n)

// The softmax of the rows [r, r + together) of a strip, from their products with K + 128 to the bytes of P. `masked`:
// whether some row of the strip does not see all of the tile.
template <bool wide, bool token_v, bool masked, int64_t together>
__attribute__((noinline)) void softmax_rows(const Scheme& s, const Tile& tile, const Queries& queries,
                                            const int32_t* products, Strip& strip, int64_t r, uint8_t* p_bytes,
                                            PrefetchSteps next_k, PrefetchSteps next_v) {
    constexpr int64_t kBytes = wide ? 2 * kTile : kTile;
    const float levels = static_cast<float>(s.p_levels);
    TileRow rows[together];
    float top[together], factor[together];
    FAQUANT_EACH_ROW {
        const int64_t i = r + n;
        rows[n].score(products + i * kTile, queries.excess[i], queries.scale[i], tile.k_scale, queries.bias[i], next_k);
        if constexpr (masked) {
            rows[n].mask(strip.low[i], strip.high[i]);
        }
    }
    FAQUANT_EACH_ROW {
        strip.top[r + n] = top[n] = rows[n].greatest();
    }
    FAQUANT_EACH_ROW {
        rows[n].exponentials(top[n], next_k);
    }
    if (token_v || !s.quantized_sum) {
        FAQUANT_EACH_ROW {
            strip.sum[r + n] = rows[n].sum();
        }
    }
    FAQUANT_EACH_ROW {
        factor[n] = levels;
        if constexpr (token_v) {
            rows[n].multiply_by(tile.v_scale);
            const float peak = greater(rows[n].greatest(), kSmallestScale);
            strip.step[r + n] = peak / levels;
            factor[n] = levels / peak;
        }
    }
    FAQUANT_EACH_ROW {
        uint8_t* bytes = p_bytes + (r + n) * kBytes;
        const int32_t sum = s.p_float16 ? round_p<wide, !token_v, true>(rows[n], factor[n], bytes, next_v)
                                        : round_p<wide, !token_v, false>(rows[n], factor[n], bytes, next_v);
        if constexpr (!token_v) {
            strip.p_sum[r + n] = static_cast<float>(sum);
            if (s.quantized_sum) {
                strip.sum[r + n] = strip.p_sum[r + n] / levels;
            }
        }
    }
}

// The softmax of all rows of a strip. Prefetches all of `next_k` and `next_v` meanwhile.
template <bool wide, bool token_v>
void softmax_strip(const Scheme& s, const Tile& tile, const Queries& queries, int64_t count, const int32_t* products,
                   Strip& strip, uint8_t* p_bytes, Prefetch next_k, Prefetch next_v) {
    const auto two =
        strip.whole ? softmax_rows<wide, token_v, false, kTogether> : softmax_rows<wide, token_v, true, kTogether>;
    const auto one = strip.whole ? softmax_rows<wide, token_v, false, 1> : softmax_rows<wide, token_v, true, 1>;
    for (int64_t i = 0; i < count; i += kTogether) {
        const int64_t left = count - i, now = smaller(kTogether, left);
        Prefetch k = next_k.take(next_k.lines * now / left), v = next_v.take(next_v.lines * now / left);
        // Two loops over the vectors of a row prefetch K, one V.
        (now == kTogether ? two : one)(s, tile, queries, products, strip, i, p_bytes, k.over(2 * now * kRowFetches),
                                       v.over(now * kRowFetches));
        k.fetch();
        v.fetch();
    }
}
