// The attention of a block of rows, for one instruction set. Each unit includes this text in its anonymous namespace,
// so that its compiler flags apply; float operations stand in reference.py's order, one rounding each. The unit
// defines before it:
//
//   kLanes       columns of one panel of a packed matrix, a divisor of kPadding
//   kMostPanels  panels that multiply_panels is best given at once
//   multiply_panels<panels>(a, a_stride, b, depth, c, c_stride)
//       c = a · b, exactly, for four rows of a, int16 [4, depth], and `panels` panels of b; depth is even
//
// A packed matrix [depth, columns] is int16 [columns / kLanes, depth / 2, kLanes, 2].

constexpr float kInfinity = __builtin_inff();
constexpr float kMinScale = 1.0f / (1 << 24);
// Adding 1.5 · 2^23 rounds to an integer, halves to even, and leaves it in the lowest bits.
constexpr float kRounder = 12582912.0f;

uint32_t bits_of(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

float float_of(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

float greater(float a, float b) {
    return a > b ? a : b;
}

int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

// 2^x for x <= 0, as reference.exp2.
float exp2_of(float x) {
    x = x < -127.0f ? -127.0f : x;
    const float shifted = x + kRounder;
    const float f = x - (shifted - kRounder);
    float p = f * 0.001326472731307149f;
    p = (p + 0.009671512991189957f) * f;
    p = (p + 0.05550733581185341f) * f;
    p = (p + 0.24022242426872253f) * f;
    p = (p + 0.6931470036506653f) * f;
    p = p + 1.0f;
    return p * float_of((bits_of(shifted) - bits_of(kRounder) + 127) << 23);
}

// To float16's precision, for what is at most 65504 and, if less than 2^-14, rounds to the integer 0 anyway.
float through_half(float x) {
    const uint32_t bits = bits_of(x);
    return float_of((bits + 0xfff + ((bits >> 13) & 1)) & ~0x1fffu);
}

// x[i] + x[i + width / 2] for all i, and so on down to one.
template <int64_t width>
float sum_by_halves(const float* x) {
    if constexpr (width == 1) {
        return x[0];
    } else {
        float half[width / 2];
        for (int64_t i = 0; i < width / 2; ++i) {
            half[i] = x[i] + x[i + width / 2];
        }
        return sum_by_halves<width / 2>(half);
    }
}

// As sum_by_halves, which compilers turn into vector instructions, as they do no plain loop for a maximum.
template <int64_t width>
float max_by_halves(const float* x) {
    if constexpr (width == 1) {
        return x[0];
    } else {
        float half[width / 2];
        for (int64_t i = 0; i < width / 2; ++i) {
            half[i] = greater(x[i], x[i + width / 2]);
        }
        return max_by_halves<width / 2>(half);
    }
}

// How a running (max, sum, out) and another one merge: the same for a tile and for a split.
struct Weights {
    float max, old_weight, new_weight;
};

Weights merged(float old_max, float new_max) {
    const float max = greater(old_max, new_max);
    const float finite = max == -kInfinity ? 0.0f : max;
    return {max, exp2_of(old_max - finite), exp2_of(new_max - finite)};
}

void clear(const Partial& partial, int64_t rows, int64_t padded) {
    for (int64_t r = 0; r < rows; ++r) {
        partial.max[r] = -kInfinity;
        partial.sum[r] = 0.0f;
    }
    for (int64_t i = 0; i < rows * padded; ++i) {
        partial.out[i] = 0.0f;
    }
}

// `count` bytes as int16, zeros up to `padded`.
void widen(const int8_t* bytes, int64_t count, int64_t padded, int16_t* __restrict wide) {
    for (int64_t i = 0; i < count; ++i) {
        wide[i] = bytes[i];
    }
    for (int64_t i = count; i < padded; ++i) {
        wide[i] = 0;
    }
}

// K [keys, dim] becomes the packed matrix [padded, kTile], zeros elsewhere.
void pack_keys(const int8_t* k, int64_t stride, int64_t keys, int64_t dim, int64_t padded, int16_t* packed) {
    int16_t wide[kLanes * kMaxHeadDim];
    for (int64_t key = 0; key < kTile; key += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
            const bool there = key + lane < keys;
            widen(there ? k + (key + lane) * stride : nullptr, there ? dim : 0, padded, wide + lane * padded);
        }
        for (int64_t i = 0; i < padded; i += 2) {
            for (int64_t lane = 0; lane < kLanes; ++lane) {
                __builtin_memcpy(packed, wide + lane * padded + i, 2 * sizeof *packed);
                packed += 2;
            }
        }
    }
}

// V [keys, dim] becomes the packed matrix [kTile, padded], zeros elsewhere.
void pack_values(const int8_t* v, int64_t stride, int64_t keys, int64_t dim, int64_t padded, int16_t* packed) {
    int16_t wide[2 * kMaxHeadDim];
    for (int64_t key = 0; key < kTile; key += 2) {
        for (int64_t i = 0; i < 2; ++i) {
            const bool there = key + i < keys;
            widen(there ? v + (key + i) * stride : nullptr, there ? dim : 0, padded, wide + i * padded);
        }
        for (int64_t channel = 0; channel < padded; channel += kLanes) {
            int16_t* place = packed + channel * kTile + key * kLanes;
            for (int64_t lane = 0; lane < kLanes; ++lane) {
                place[2 * lane] = wide[channel + lane];
                place[2 * lane + 1] = wide[padded + channel + lane];
            }
        }
    }
}

// c = a · b for four rows.
void multiply(const int16_t* a, int64_t a_stride, const int16_t* b, int64_t depth, int64_t columns, int32_t* c,
              int64_t c_stride) {
    int64_t i = 0;
    for (; i + kMostPanels * kLanes <= columns; i += kMostPanels * kLanes) {
        multiply_panels<kMostPanels>(a, a_stride, b + i * depth, depth, c + i, c_stride);
    }
    for (; i < columns; i += kLanes) {
        multiply_panels<1>(a, a_stride, b + i * depth, depth, c + i, c_stride);
    }
}

// What the rows of a strip share at one tile.
struct Tile {
    const int16_t* k;
    const int16_t* v;
    float k_scale[kTile];
    float v_scale[kTile];
};

// One row at one tile: the keys [low, high) of the tile that it sees, and its part of the softmax.
struct Row {
    int64_t low, high;
    float top, sum;
    float step;   // what one step of P is worth, where V's scales are per token
    float p_sum;  // the sum of the integers, where V's are static
};

// Integer P of one row, from its int32 scores.
void softmax(const Attention& a, const Tile& tile, const int32_t* sums, float scale, float bias, Row& row,
             int16_t* p_int) {
    float p[kTile], weighted[kTile];
    for (int64_t j = 0; j < kTile; ++j) {
        p[j] = static_cast<float>(sums[j]) * scale * tile.k_scale[j] + bias;
    }
    for (int64_t j = 0; j < row.low; ++j) {
        p[j] = -kInfinity;
    }
    for (int64_t j = row.high; j < kTile; ++j) {
        p[j] = -kInfinity;
    }
    row.top = max_by_halves<kTile>(p);
    const float finite = row.top == -kInfinity ? 0.0f : row.top;
    for (int64_t j = 0; j < kTile; ++j) {
        p[j] = exp2_of(p[j] - finite);
    }
    const float levels = static_cast<float>(a.p_levels);
    float factor = levels;
    if (a.v_scale != nullptr) {
        for (int64_t j = 0; j < kTile; ++j) {
            weighted[j] = p[j] * tile.v_scale[j];
        }
        const float peak = greater(max_by_halves<kTile>(weighted), kMinScale);
        factor = levels / peak;
        row.step = peak / levels;
    }
    const float* source = a.v_scale != nullptr ? weighted : p;
    if (a.p_levels == 127) {
        // The ecosystem's kernel rounds through float16.
        for (int64_t j = 0; j < kTile; ++j) {
            p_int[j] = static_cast<int16_t>(bits_of(through_half(source[j] * factor) + kRounder));
        }
    } else {
        for (int64_t j = 0; j < kTile; ++j) {
            p_int[j] = static_cast<int16_t>(bits_of(source[j] * factor + kRounder));
        }
    }
    if (a.v_scale == nullptr) {
        int32_t total = 0;
        for (int64_t j = 0; j < kTile; ++j) {
            total += p_int[j];
        }
        row.p_sum = static_cast<float>(total);
    }
    row.sum = a.quantized_sum ? row.p_sum / levels : sum_by_halves<kTile>(p);
}

// One row's tile into its split: out = out · old_weight + (∑ P·V in V's units) · new_weight.
void merge_tile(const Attention& a, int64_t kv_head, const Row& row, const int32_t* sums, const Partial& split,
                int64_t r, int64_t padded) {
    const Weights w = merged(split.max[r], row.top);
    split.max[r] = w.max;
    split.sum[r] = split.sum[r] * w.old_weight + row.sum * w.new_weight;
    float* __restrict out = split.out + r * padded;
    if (a.v_scale != nullptr) {
        for (int64_t c = 0; c < a.dim; ++c) {
            out[c] = out[c] * w.old_weight + static_cast<float>(sums[c]) * row.step * w.new_weight;
        }
        return;
    }
    const float* v_step = a.v_step + kv_head * a.dim;
    const float unit = static_cast<float>(1.0 / a.p_levels);
    if (a.v_offset != nullptr) {
        const float* v_offset = a.v_offset + kv_head * a.dim;
        for (int64_t c = 0; c < a.dim; ++c) {
            const float shifted = static_cast<float>(sums[c]) - row.p_sum * v_offset[c];
            out[c] = out[c] * w.old_weight + shifted * unit * v_step[c] * w.new_weight;
        }
    } else {
        for (int64_t c = 0; c < a.dim; ++c) {
            out[c] = out[c] * w.old_weight + static_cast<float>(sums[c]) * unit * v_step[c] * w.new_weight;
        }
    }
}

void merge_split(const Partial& split, const Partial& total, int64_t r, int64_t padded) {
    const Weights w = merged(total.max[r], split.max[r]);
    total.max[r] = w.max;
    total.sum[r] = total.sum[r] * w.old_weight + split.sum[r] * w.new_weight;
    float* __restrict out = total.out + r * padded;
    const float* more = split.out + r * padded;
    for (int64_t c = 0; c < padded; ++c) {
        out[c] = out[c] * w.old_weight + more[c] * w.new_weight;
    }
}

void attend_rows(const Attention& a, int64_t kv_head, int64_t first, int64_t last, const Scratch& scratch) {
    const int64_t group = a.heads / a.kv_heads;
    const int64_t rows = (last - first) * group;
    const int64_t padded = (a.dim + kPadding - 1) / kPadding * kPadding;
    const int64_t end = a.start + last;
    const int64_t oldest = larger(0, a.start + first - a.window + 1);
    const int64_t key_stride = a.kv_heads * a.dim;

    // Where row r stands in [tokens, heads].
    const auto place = [&](int64_t r) { return (first + r / group) * a.heads + kv_head * group + r % group; };

    int64_t map = -1;
    Tile tile;
    tile.k = scratch.k;
    tile.v = scratch.v;
    Row strip[kStrip];
    int16_t p_int[kStrip * kTile] = {};
    clear(scratch.total, rows, padded);
    for (int64_t split = oldest / a.split * a.split; split < end; split += a.split) {
        clear(scratch.split, rows, padded);
        const int64_t stop = smaller(split + a.split, end);
        for (int64_t key = larger(split, oldest / kTile * kTile); key < stop; key += kTile) {
            if (map != smaller(key / a.map_block, a.maps - 1)) {
                map = smaller(key / a.map_block, a.maps - 1);
                const int8_t* q = a.q + map * a.tokens * a.heads * a.dim;
                for (int64_t r = 0; r < (rows + 3) / 4 * 4; ++r) {
                    widen(q + place(r < rows ? r : 0) * a.dim, a.dim, padded, scratch.q + r * padded);
                }
            }
            const int64_t keys = smaller(kTile, end - key);
            pack_keys(a.k + key * key_stride + kv_head * a.dim, key_stride, keys, a.dim, padded, scratch.k);
            pack_values(a.v + key * key_stride + kv_head * a.dim, key_stride, keys, a.dim, padded, scratch.v);
            for (int64_t j = 0; j < kTile; ++j) {
                // What nobody sees may be NaN, which times 0 is NaN.
                const bool seen = key + j >= oldest && j < keys;
                const int64_t at = (key + j) * a.kv_heads + kv_head;
                tile.k_scale[j] = a.k_scale == nullptr ? 1.0f : seen ? a.k_scale[at] : 0.0f;
                tile.v_scale[j] = a.v_scale != nullptr && seen ? a.v_scale[at] : 0.0f;
            }
            for (int64_t r = 0; r < rows; r += kStrip) {
                const int64_t count = smaller(kStrip, rows - r);
                bool any = false;
                for (int64_t i = 0; i < count; ++i) {
                    const int64_t position = a.start + first + (r + i) / group;
                    strip[i].low = smaller(kTile, larger(0, position - a.window + 1 - key));
                    strip[i].high = smaller(kTile, larger(0, position + 1 - key));
                    any = any || strip[i].low < strip[i].high;
                }
                // A row that sees no key of a tile keeps its bits.
                if (!any) {
                    continue;
                }
                for (int64_t i = 0; i < count; i += 4) {
                    multiply(scratch.q + (r + i) * padded, padded, scratch.k, padded, kTile,
                             scratch.products + i * kTile, kTile);
                }
                for (int64_t i = 0; i < count; ++i) {
                    if (strip[i].low < strip[i].high) {
                        const int64_t at = map * a.tokens * a.heads + place(r + i);
                        softmax(a, tile, scratch.products + i * kTile, a.q_scale[at], a.q_bias[at], strip[i],
                                p_int + i * kTile);
                    }
                }
                for (int64_t i = 0; i < count; i += 4) {
                    multiply(p_int + i * kTile, kTile, scratch.v, kTile, padded, scratch.products + i * padded, padded);
                }
                for (int64_t i = 0; i < count; ++i) {
                    if (strip[i].low < strip[i].high) {
                        merge_tile(a, kv_head, strip[i], scratch.products + i * padded, scratch.split, r + i, padded);
                    }
                }
            }
        }
        for (int64_t r = 0; r < rows; ++r) {
            merge_split(scratch.split, scratch.total, r, padded);
        }
    }
    for (int64_t r = 0; r < rows; ++r) {
        float* out = a.out + place(r) * a.dim;
        for (int64_t c = 0; c < a.dim; ++c) {
            out[c] = scratch.total.out[r * padded + c] / scratch.total.sum[r];
        }
    }
}
