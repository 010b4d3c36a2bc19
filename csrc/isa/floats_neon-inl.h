// The primitives for vectors of floats that generic/editor.h lists, with NEON.

#pragma once

#ifndef FAQUANT_UNIT
#include <arm_neon.h>

#include "isa/kernels.h"

using namespace faquant;
#endif

#define FAQUANT_REGISTER(x) "+w"(x)

using Floats = float32x4_t;

constexpr int64_t kFloatLanes = 4;

constexpr int float_blocks(int rows) {
    return rows <= 2 ? 8 : 4;
}

Floats load_floats(const float* from) {
    return vld1q_f32(from);
}

Floats first_rows(const uint8_t* b) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(vld1q_u8(b)), 16));
}

Floats second_rows(const uint8_t* b) {
    // Reads the words again: there are not enough registers for both functions' results.
    __asm__ volatile("" ::: "memory");
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(vld1q_u8(b)), vdupq_n_u32(0xffff0000u)));
}

Floats all_lanes(float x) {
    // GCC would read the numbers of all rows first, and has no registers for them.
    if (!__builtin_constant_p(x)) {
        __asm__ volatile("" : "+w"(x)::"memory");
    }
    return vdupq_n_f32(x);
}

Floats add_product(Floats sum, Floats a, Floats b) {
    return vfmaq_f32(sum, a, b);
}

void store(float* to, Floats x) {
    vst1q_f32(to, x);
}

void halves_to_floats(const uint16_t* halves, float* floats) {
    for (int64_t i = 0; i < kTile; i += 4) {
        vst1q_f32(floats + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + i))));
    }
}
