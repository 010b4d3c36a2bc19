// AMX-INT8's operations on tile registers, in assembly: GCC 12 drops stores before the intrinsics that read memory, and
// the compiler needs no flags for these. All tiles have kAmxRows rows of kAmxWords words, of a, of packed columns or of
// sums.

#pragma once

#ifndef FAQUANT_UNIT
#include "isa/kernels.h"

using namespace faquant;
#endif

#include "generic/numbers-inl.h"

constexpr int64_t kAmxRows = 16, kAmxWords = 16;

// The operand of ldtilecfg.
struct alignas(64) AmxShapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_of_a_row[16];
    uint8_t rows[16];
};

constexpr AmxShapes kAmxShapes = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16},
};

FAQUANT_INLINE void amx_configure() {
    __asm__ volatile("ldtilecfg %0" : : "m"(kAmxShapes) : "memory");
}

FAQUANT_INLINE void amx_release() {
    __asm__ volatile("tilerelease" : : : "memory");
}

template <int tile>
FAQUANT_INLINE void amx_zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(tile));
}

// The clobbered memory makes compilers store the rows first.
template <int tile, int offset>
FAQUANT_INLINE void amx_load(const void* rows, int64_t bytes_between) {
    __asm__ volatile("tileloadd %c3(%0,%1,1), %%tmm%c2"
                     :
                     : "r"(rows), "r"(bytes_between), "i"(tile), "i"(offset)
                     : "memory");
}

template <int tile, int offset>
FAQUANT_INLINE void amx_store(void* rows, int64_t bytes_between) {
    __asm__ volatile("tilestored %%tmm%c2, %c3(%0,%1,1)"
                     :
                     : "r"(rows), "r"(bytes_between), "i"(tile), "i"(offset)
                     : "memory");
}

// sums[r][j] += ∑ a[r][4 · i + m] · columns[i][j][m]; one side is signed, the other unsigned.
template <bool packed_unsigned, int sums, int a, int columns>
FAQUANT_INLINE void amx_add_products() {
    if constexpr (packed_unsigned) {
        __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(a), "i"(columns));
    } else {
        __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(a), "i"(columns));
    }
}
