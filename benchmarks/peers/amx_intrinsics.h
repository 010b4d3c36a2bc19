// Mended AMX intrinsics for GCC; the Makefile has it included before every C++ file of llama.cpp (-include).
//
// GCC 12 does not tell its optimizer that tileloadd reads memory, nor that ldtilecfg reads all 64 bytes, and drops
// stores before them. ggml then configures tiles of no rows, which ends the process, or computes with wrong values.
// The statements below say what they read. Clang's intrinsics are right.
#if defined(__AMX_TILE__) && !defined(__clang__)

#include <immintrin.h>

#undef _tile_loadd
#undef _tile_loadconfig

// Two macros, so that a macro given as `tile` is replaced by its number first.
#define _tile_loadd(tile, base, stride) mended_tile_loadd(tile, base, stride)
#define mended_tile_loadd(tile, base, stride)                                                                      \
    __asm__ volatile("tileloadd\t(%0,%1,1), %%tmm" #tile ::"r"((const void*)(base)), "r"((long)(stride)) : "memory")
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg\t%0" ::"m"(*(const char(*)[64])(config)) : "memory")

#endif
