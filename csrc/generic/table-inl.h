// The table of a unit's kernels.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"

int32_t dot_u8s8(const uint8_t* a, const int8_t* b, int64_t n);
int32_t dot_s8s8(const int8_t* a, const int8_t* b, int64_t n);
#endif

#include "generic/cache_rows-inl.h"
#include "generic/draw_rows-inl.h"
#include "generic/elementwise_rows-inl.h"
#include "generic/float_linear_rows-inl.h"
#include "generic/linear_rows-inl.h"

// Constant, so that no code of the unit runs before the CPU is known to have its instructions.
constexpr KernelTable table_of(const char* name, uint32_t features) {
    KernelTable table{};
    table.name = name;
    table.features = features;
    table.dot_u8s8 = dot_u8s8;
    table.dot_s8s8 = dot_s8s8;
    table.append = append;
    table.attend = attend;
    table.quantize_inputs = quantize_inputs;
    table.linear_panels = linear_panels;
    table.gated_panels = gated_panels;
    table.float_panels = float_panels;
    table.rms_norm = rms_norm;
    table.rope = rope;
    table.silu_times = silu_times;
    table.gelu_times = gelu_times;
    table.finish = finish;
    table.block_maxima = block_maxima;
    table.block_weights = block_weights;
    return table;
}
