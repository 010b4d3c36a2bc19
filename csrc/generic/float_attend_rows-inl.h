// A float32 cache, for one instruction set: the softmax of softmax-inl.h with the sums of float_products-inl.h.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/float_products-inl.h"
#include "generic/numbers-inl.h"
#include "generic/softmax-inl.h"

void append_floats(const Scheme& s, const Cache& c, const float* k, const float* v, const int64_t* slots, int64_t first,
                   int64_t last) {
    const int64_t row = s.kv_heads * s.dim;
    for (int64_t token = first; token < last; ++token) {
        const int64_t to = slots[token] / c.page_size * c.stride + slots[token] % c.page_size * row;
        for (int64_t i = 0; i < row; ++i) {
            c.float_k[to + i] = k[token * row + i];
            c.float_v[to + i] = v[token * row + i];
        }
    }
}

// The keys of one head in a sequence's pages.
struct FloatKeys {
    const Cache& cache;
    const Span& span;
    int64_t row, head;  // floats per key, and before its head

    const float* of(const float* store, int64_t key) const {
        return store + span.block_table[key / cache.page_size] * cache.stride + key % cache.page_size * row + head;
    }
};

void fetch_row(const float* row, int64_t dim) {
    for (int64_t c = 0; c < dim; c += kCacheLine / 4) {
        __builtin_prefetch(row + c);
    }
}

// The keys [low, high) of the tile at `key`, packed (dim, kTile). Prefetches their values meanwhile, and the next keys
// up to `stop`: the rows of a head are not contiguous, so hardware prefetchers do not find them.
void pack_tile(const FloatKeys& keys, int64_t key, int64_t low, int64_t high, int64_t stop, int64_t dim,
               float* packed) {
    for (int64_t first = low / kLanes * kLanes; first < high; first += kLanes) {
        const float* rows[kLanes];
        for (int64_t j = 0; j < kLanes; ++j) {
            // Any valid key if no key is visible.
            const int64_t place = larger(low, smaller(first + j, high - 1));
            rows[j] = keys.of(keys.cache.float_k, key + place);
            fetch_row(keys.of(keys.cache.float_v, key + place), dim);
            if (key + first + j + kLanes < stop) {
                fetch_row(keys.of(keys.cache.float_k, key + first + j + kLanes), dim);
            }
        }
        float* to = packed + first / kPanel * kPanel * dim + first % kPanel;
        for (int64_t c = 0; c < dim; ++c, to += kPanel) {
            for (int64_t j = 0; j < kLanes; ++j) {
                to[j] = rows[j][c];
            }
        }
    }
}

// The values [low, high) of the tile at `key` as rows of padded channels.
void copy_tile(const FloatKeys& keys, int64_t key, int64_t low, int64_t high, int64_t dim, float* rows) {
    for (int64_t j = low; j < high; ++j) {
        const float* from = keys.of(keys.cache.float_v, key + j);
        float* to = rows + j * padded_dim(dim);
        for (int64_t c = 0; c < padded_dim(dim); ++c) {
            to[c] = c < dim ? from[c] : 0.0f;
        }
    }
}

void clear(float* x, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        x[i] = 0.0f;
    }
}

void attend_floats(const Attention& a, const Span& span, int64_t kv_head, int64_t first, int64_t last, int64_t begin,
                   int64_t end, const Scratch& scratch, const Partial& total) {
    const Scheme& s = *a.scheme;
    const Cache& cache = *a.cache;
    const int64_t group = s.heads / s.kv_heads, rows = (last - first) * group, padded = padded_dim(s.dim);
    const int64_t seen_to = span.start + last, stop = smaller(end, seen_to);
    const int64_t oldest = larger(0, span.start + first - a.window + 1);
    const float unit = static_cast<float>(1.4426950408889634 / __builtin_sqrt(static_cast<double>(s.dim)));
    const FloatKeys keys = {cache, span, s.kv_heads * s.dim, kv_head * s.dim};
    const bool is_in_place = cache.page_size % kTile == 0 && padded == s.dim;

    for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = (span.first + first + r / group) * s.heads + kv_head * group + r % group;
        for (int64_t c = 0; c < s.dim; ++c) {
            scratch.factors[r * padded + c] = a.q[row * s.dim + c] * unit;
        }
    }
    Strip strip;
    float p[kStrip * kTile];
    clear(total, rows, padded);
    for (int64_t split = larger(begin, oldest / a.split * a.split); split < stop; split += a.split) {
        clear(scratch.split, rows, padded);
        const int64_t split_end = smaller(split + a.split, stop);
        for (int64_t key = larger(split, oldest / kTile * kTile); key < split_end; key += kTile) {
            // Invisible values may be NaN.
            const int64_t low = larger(0, oldest - key), high = smaller(kTile, seen_to - key);
            pack_tile(keys, key, low, high, stop, s.dim, scratch.float_k);
            const float* v = scratch.float_v;
            int64_t v_stride = padded;
            if (is_in_place) {
                v = keys.of(cache.float_v, key);
                v_stride = keys.row;
            } else {
                copy_tile(keys, key, low, high, s.dim, scratch.float_v);
            }
            for (int64_t r = 0; r < rows; r += kStrip) {
                const int64_t count = smaller(kStrip, rows - r);
                if (!find_visible(a, span, first, r, count, key, strip)) {
                    continue;
                }
                clear(p, count * kTile);
                for (int64_t j = 0; j < kTile; j += kPanel) {
                    const FloatPanel panel = {reinterpret_cast<const uint8_t*>(scratch.float_k + j * s.dim), 4 * kPanel,
                                              kPanel, s.dim};
                    add_float_products<1>(scratch.factors + r * padded, padded, count, panel, p + j, kTile);
                }
                for (int64_t i = 0; i < count; ++i) {
                    if (strip.sees(i)) {
                        probabilities(strip, i, p + i * kTile);
                        strip.sum[i] = sum_of_row(p + i * kTile);
                    }
                }
                clear(scratch.sums, count * padded);
                const FloatPanel values = {reinterpret_cast<const uint8_t*>(v + low * v_stride), 4 * v_stride, padded,
                                           high - low};
                add_float_products<1>(p + low, kTile, count, values, scratch.sums, padded);
                const Weights w(strip.top, strip.sum, scratch.split.max + r, scratch.split.sum + r, count);
                for (int64_t i = 0; i < count; ++i) {
                    if (strip.sees(i)) {
                        float* __restrict out = scratch.split.out + (r + i) * padded;
                        const float* sums = scratch.sums + i * padded;
                        for (int64_t c = 0; c < padded; ++c) {
                            // −0 becomes 0, as it would if invisible keys followed.
                            out[c] = out[c] * w.old[i] + (sums[c] + 0.0f) * w.added[i];
                        }
                    }
                }
            }
        }
        merge(scratch.split, total, rows, padded);
    }
}
