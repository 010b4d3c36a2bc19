// Dispatches append and attend by the kind of cache, for one instruction set.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/attend_rows-inl.h"
#include "generic/bfloat16_rows-inl.h"
#include "generic/float_attend_rows-inl.h"
#include "generic/quantize_rows-inl.h"

void append(const Scheme& s, const Cache& c, const float* k, const float* v, const int64_t* slots,
            const int64_t* positions, int64_t first, int64_t last, int64_t saturated[2]) {
    if (c.float_k != nullptr) {
        append_floats(s, c, k, v, slots, first, last);
    } else if (c.bfloat16_k != nullptr) {
        append_bfloat16(s, c, k, v, slots, first, last);
    } else {
        append_int8(s, c, k, v, slots, positions, first, last, saturated);
    }
}

int64_t attend(const Attention& a, const Span& span, int64_t kv_head, int64_t first, int64_t last, int64_t begin,
               int64_t end, const Scratch& scratch, const Partial& total) {
    if (a.cache->float_k != nullptr) {
        attend_floats(a, span, kv_head, first, last, begin, end, scratch, total);
        return 0;
    }
    if (a.cache->bfloat16_k != nullptr) {
        attend_bfloat16(a, span, kv_head, first, last, begin, end, scratch, total);
        return 0;
    }
    return attend_int8(a, span, kv_head, first, last, begin, end, scratch, total);
}
