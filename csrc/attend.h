#pragma once

#include "kernels.h"

namespace faquant {

// All of `a` with the table's attend_rows, by up to `threads` threads. No bit depends on their number.
void attend(const KernelTable& table, const Attention& a, int64_t threads);

}  // namespace faquant
