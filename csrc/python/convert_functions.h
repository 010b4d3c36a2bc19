#pragma once

#include "ops/convert.h"
#include "python/arrays.h"

// source uint16 [n] of bits, target float32 [n].
template <void (*widen)(const void*, int64_t, float*, int64_t)>
void widen_array(const Array& source, const WritableArray& target, int64_t threads) {
    require(source.ndim() == 1, "source must have one dimension.");
    const auto count = static_cast<int64_t>(source.shape(0));
    const auto* from = data_of<const uint16_t>(source, "source", "uint16", {count});
    auto* to = data_of<float>(target, "target", "float32", {count});
    nb::gil_scoped_release unlocked;
    widen(from, count, to, threads_of(threads));
}
