#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "right.h"

namespace faquant {
namespace {

void forget_center(Scheme& s) {
    s.k_center = nullptr;
}

void forget_equalizer(Scheme& s) {
    s.k_equalizer = nullptr;
}

void forget_signs(Scheme& s) {
    s.rotation_sign = nullptr;
}

void forget_v_rotation(Scheme& s) {
    s.v_rotation_block = 0;
}

void forget_offsets(Scheme& s) {
    s.k_offset = s.v_offset = nullptr;
}

void forget_quantized_sum(Scheme& s) {
    s.quantized_sum = false;
}

template <void (*change)(Scheme&)>
void append_with(const Scheme& scheme, const Cache& cache, const float* k, const float* v, const int64_t* slots,
                 const int64_t* positions, int64_t first, int64_t last, int64_t saturated[2]) {
    Scheme changed = scheme;
    change(changed);
    right.append(changed, cache, k, v, slots, positions, first, last, saturated);
}

void append_uncounted(const Scheme& scheme, const Cache& cache, const float* k, const float* v, const int64_t* slots,
                      const int64_t* positions, int64_t first, int64_t last, int64_t*) {
    int64_t saturated[2] = {};
    right.append(scheme, cache, k, v, slots, positions, first, last, saturated);
}

template <void (*change)(Scheme&)>
int64_t attend_with(const Attention& a, const Span& span, int64_t kv_head, int64_t first, int64_t last, int64_t begin,
                    int64_t end, const Scratch& scratch, const Partial& total) {
    Scheme changed = *a.scheme;
    change(changed);
    Attention b = a;
    b.scheme = &changed;
    return right.attend(b, span, kv_head, first, last, begin, end, scratch, total);
}

int64_t attend_without_window(const Attention& a, const Span& span, int64_t kv_head, int64_t first, int64_t last,
                              int64_t begin, int64_t end, const Scratch& scratch, const Partial& total) {
    Attention b = a;
    b.window = INT32_MAX;
    return right.attend(b, span, kv_head, first, last, begin, end, scratch, total);
}

int64_t attend_uncounted(const Attention& a, const Span& span, int64_t kv_head, int64_t first, int64_t last,
                         int64_t begin, int64_t end, const Scratch& scratch, const Partial& total) {
    right.attend(a, span, kv_head, first, last, begin, end, scratch, total);
    return 0;
}

void finish_with_v_rotated(const Partial* parts, int64_t count, int64_t rows, const Scheme& scheme,
                           const Partial& total) {
    Scheme changed = scheme;
    forget_v_rotation(changed);
    right.finish(parts, count, rows, changed, total);
}

void finish_the_first(const Partial* parts, int64_t, int64_t rows, const Scheme& scheme, const Partial& total) {
    right.finish(parts, 0, rows, scheme, total);
}

// Rounds to bfloat16 towards zero.
void append_truncated(const Scheme& scheme, const Cache& cache, const float* k, const float* v, const int64_t* slots,
                      const int64_t* positions, int64_t first, int64_t last, int64_t saturated[2]) {
    right.append(scheme, cache, k, v, slots, positions, first, last, saturated);
    if (cache.bfloat16_k == nullptr) {
        return;
    }
    std::vector<float> k_cut(k, k + last * scheme.kv_heads * scheme.dim);
    for (float& x : k_cut) {
        uint32_t bits;
        std::memcpy(&bits, &x, sizeof bits);
        bits &= 0xffff0000u;
        std::memcpy(&x, &bits, sizeof bits);
    }
    right.append(scheme, cache, k_cut.data(), v, slots, positions, first, last, saturated);
}

int64_t attend_nudged_in_bfloat16(const Attention& a, const Span& span, int64_t kv_head, int64_t first, int64_t last,
                                  int64_t begin, int64_t end, const Scratch& scratch, const Partial& total) {
    const int64_t saturated = right.attend(a, span, kv_head, first, last, begin, end, scratch, total);
    // Several, because the division by the sum may round the difference away.
    for (int64_t c = 0; a.cache->bfloat16_k != nullptr && c < a.scheme->dim; ++c) {
        nudge(total.out[c]);
    }
    return saturated;
}

int64_t attend_nudged_in_float32(const Attention& a, const Span& span, int64_t kv_head, int64_t first, int64_t last,
                                 int64_t begin, int64_t end, const Scratch& scratch, const Partial& total) {
    const int64_t saturated = right.attend(a, span, kv_head, first, last, begin, end, scratch, total);
    for (int64_t c = 0; a.cache->float_k != nullptr && c < a.scheme->dim; ++c) {
        nudge(total.out[c]);
    }
    return saturated;
}

// Doubles the last key.
void append_scaled_in_float32(const Scheme& scheme, const Cache& cache, const float* k, const float* v,
                              const int64_t* slots, const int64_t* positions, int64_t first, int64_t last,
                              int64_t saturated[2]) {
    right.append(scheme, cache, k, v, slots, positions, first, last, saturated);
    if (cache.float_k != nullptr) {
        cache.float_k[slots[last - 1] * scheme.kv_heads * scheme.dim] *= 2.0f;
    }
}

}  // namespace
}  // namespace faquant
