// Quantizes rows of q, k and v to int8, for one instruction set, with the operations of kernels/quantizers.py.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/hadamard-inl.h"
#include "generic/numbers-inl.h"
#include "generic/reductions-inl.h"

constexpr float kSmallestScale = 1.0f / (1 << 24);

void rotate(const Scheme& s, float* x) {
    if (s.rotation_block == 0) {
        return;
    }
    if (s.rotation_sign != nullptr) {
        for (int64_t i = 0; i < s.dim; ++i) {
            x[i] *= s.rotation_sign[i];
        }
    }
    hadamard(x, s.dim, s.rotation_block);
}

// The greatest absolute value, compared as bits, because comparing floats would ignore NaN.
float absolute_peak(const float* x, int64_t dim) {
    uint32_t peak = 0;
    for (int64_t i = 0; i < dim; ++i) {
        const uint32_t size = bits_of(x[i]) & 0x7fffffffu;
        peak = size > peak ? size : peak;
    }
    return float_of(peak);
}

// The scale of a row with this peak.
float step_of(float peak, float steps = 127.0f) {
    return (peak < 1e-30f ? 1e-30f : peak) / steps;
}

// x / scale to the nearest integer in [least, 127].
void round_row(const float* x, float scale, int64_t dim, int8_t* out, float least = -127.0f) {
    for (int64_t i = 0; i < dim; ++i) {
        out[i] = byte_of(greater(lesser(x[i] / scale, 127.0f), least) + kRounder);
    }
}

// x / scale + offset in [-128, 127]; returns how many values were out of range. The tables advance by `step` per
// channel.
int64_t round_static(const float* x, const float* scale, int64_t step, const float* offset, int64_t dim, int8_t* out) {
    int32_t beyond = 0;
    for (int64_t i = 0; i < dim; ++i) {
        float steps = x[i] / scale[i * step];
        if (offset != nullptr) {
            steps += offset[i];
        }
        beyond += steps < -128.5f || steps > 127.5f;
        out[i] = byte_of(greater(lesser(steps, 127.0f), -128.0f) + kRounder);
    }
    return beyond;
}

int64_t map_of(const Scheme& s, int64_t position) {
    return smaller(position / s.map_block, s.maps - 1);
}

// K's map: Hᵀ((k - c) ⊘ e).
void map_key(const Scheme& s, int64_t map, int64_t head, const float* k, float* mapped) {
    const int64_t at = (map * s.kv_heads + head) * s.dim;
    for (int64_t i = 0; i < s.dim; ++i) {
        mapped[i] = s.k_center == nullptr ? k[i] : k[i] - s.k_center[at + i];
    }
    if (s.k_equalizer != nullptr) {
        for (int64_t i = 0; i < s.dim; ++i) {
            mapped[i] /= s.k_equalizer[at + i];
        }
    }
    rotate(s, mapped);
}

// The offset of a row and column in a packed matrix [rows, columns], with this many rows per word.
template <int64_t in_word>
int64_t packed_at(int64_t row, int64_t column, int64_t rows, int64_t columns) {
    const int64_t panel = column / kPanel * kPanel, width = smaller(kPanel, columns - panel);
    return panel * rows + row / in_word * in_word * width + (column - panel) * in_word + row % in_word;
}

// Quantizes one head of a key or value: with its own scale, which is stored in scales[at], or a static one [heads,
// dim]. Returns how many values were beyond the latter.
int64_t round_head(const float* x, const float* table, const float* offset, int64_t head, int64_t dim, uint16_t* scales,
                   int64_t at, int8_t* out) {
    if (table != nullptr) {
        return round_static(x, table + head * dim, 1, offset == nullptr ? nullptr : offset + head * dim, dim, out);
    }
    const float peak = absolute_peak(x, dim) / 127.0f;
    scales[at] = half_above(lesser(greater(peak, kSmallestScale), 65504.0f));
    round_row(x, half_to_float(scales[at]), dim, out);
    return 0;
}

// Stores a key + 128 as a column of a tile of K.
void store_key(const int8_t* bytes, int64_t dim, int64_t key, int64_t padded, uint8_t* tile) {
    uint8_t* to = tile + packed_at<4>(0, key, padded, kTile);
    int64_t i = 0;
    for (; i + 4 <= dim; i += 4, to += 4 * kPanel) {
        uint32_t word;
        __builtin_memcpy(&word, bytes + i, sizeof word);
        word ^= 0x80808080u;
        __builtin_memcpy(to, &word, sizeof word);
    }
    for (int64_t j = 0; i + j < dim; ++j) {
        to[j] = static_cast<uint8_t>(bytes[i + j]) ^ 0x80;
    }
}

// Stores a value as a row of a tile of V.
void store_value(const int8_t* bytes, int64_t dim, int64_t key, int64_t padded, int8_t* tile) {
    for (int64_t panel = 0; panel < dim; panel += kPanel) {
        int8_t* to = tile + packed_at<4>(key, panel, kTile, padded);
        for (int64_t i = panel; i < smaller(panel + kPanel, dim); ++i, to += 4) {
            *to = bytes[i];
        }
    }
}

void append_int8(const Scheme& s, const Cache& c, const float* k, const float* v, const int64_t* slots,
                 const int64_t* positions, int64_t first, int64_t last, int64_t saturated[2]) {
    float mapped[kMaxHeadDim];
    int8_t bytes[kMaxHeadDim];
    const int64_t padded = padded_dim(s.dim);
    for (int64_t token = first; token < last; ++token) {
        for (int64_t head = 0; head < s.kv_heads; ++head) {
            const int64_t at = (token * s.kv_heads + head) * s.dim;
            const int64_t key = slots[token] % c.page_size;
            const int64_t page = slots[token] / c.page_size, row = head * c.page_size + key;
            const int64_t tile = page * c.stride + (row - key % kTile) * padded;
            const int64_t scale = page * c.scale_stride + row;
            map_key(s, map_of(s, positions[token]), head, k + at, mapped);
            saturated[0] += round_head(mapped, s.k_scale, s.k_offset, head, s.dim, c.k_scale, scale, bytes);
            store_key(bytes, s.dim, key % kTile, padded, c.k + tile);
            for (int64_t i = 0; i < s.dim; ++i) {
                mapped[i] = v[at + i];
            }
            if (s.v_rotation_block != 0) {
                hadamard(mapped, s.dim, s.v_rotation_block);
            }
            saturated[1] += round_head(mapped, s.v_scale, s.v_offset, head, s.dim, c.v_scale, scale, bytes);
            store_value(bytes, s.dim, key % kTile, padded, c.v + tile);
        }
    }
}

// A query, transformed for one map of K.
struct Query {
    float scale, bias;
    int32_t excess;
    int64_t saturated;
};

// reference.map_queries of one row under one map, into q8 [padded dim]. `shifted`: whether keys of other maps are seen.
Query map_query(const Scheme& s, int64_t map, int64_t head, const float* q, bool shifted, int8_t* q8) {
    const int64_t kv_head = head / (s.heads / s.kv_heads);
    const int64_t at = (map * s.kv_heads + kv_head) * s.dim;
    const float unit = static_cast<float>(1.4426950408889634 / __builtin_sqrt(static_cast<double>(s.dim)));
    Query query{};
    float x[2 * kMaxHeadDim];
    if (shifted && s.k_center != nullptr) {
        const float* center = s.k_center + at;
        const float* origin = s.k_center + kv_head * s.dim;
        for (int64_t i = 0; i < s.dim; ++i) {
            x[i] = q[i] * (center[i] - origin[i]);
        }
        query.bias = tree_sum(x, s.dim) * unit;
    }
    for (int64_t i = 0; i < s.dim; ++i) {
        x[i] = s.k_equalizer == nullptr ? q[i] : q[i] * s.k_equalizer[at + i];
    }
    rotate(s, x);
    if (s.q_scale != nullptr && s.q_by_channel) {
        // An integer product cannot have a scale per channel of q: round to that grid, then quantize dynamically.
        const float* grid = s.q_scale + head * s.dim;
        query.saturated += round_static(x, grid, 1, nullptr, s.dim, q8);
        for (int64_t i = 0; i < s.dim; ++i) {
            x[i] = static_cast<float>(q8[i]) * grid[i];
        }
    }
    if (s.k_scale != nullptr && s.k_by_channel) {
        for (int64_t i = 0; i < s.dim; ++i) {
            x[i] *= s.k_scale[kv_head * s.dim + i];
        }
    }
    if (s.q_scale != nullptr && !s.q_by_channel) {
        query.scale = s.q_scale[head * s.dim];
        query.saturated += round_static(x, &query.scale, 0, nullptr, s.dim, q8);
    } else {
        query.scale = step_of(absolute_peak(x, s.dim));
        round_row(x, query.scale, s.dim, q8);
    }
    if (s.k_scale != nullptr && !s.k_by_channel) {
        query.scale *= s.k_scale[kv_head * s.dim];
    }
    query.scale *= unit;
    for (int64_t i = s.dim; i < padded_dim(s.dim); ++i) {
        q8[i] = 0;
    }
    int32_t sum = 0;
    for (int64_t i = 0; i < s.dim; ++i) {
        sum += q8[i];
    }
    query.excess = 128 * sum;
    return query;
}
