#pragma once

#include "isa/kernels.h"

namespace faquant {

// Compares every kernel of `table` with the portable one, bit for bit, and with a plain loop, on extreme and on
// pseudo-random values. Returns the name of the first kernel that differs, or nullptr. The CPU must have the table's
// instructions.
const char* first_wrong_kernel(const KernelTable& table);

}  // namespace faquant
