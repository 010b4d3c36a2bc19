#pragma once

#include <string>

#include "isa/kernels.h"

namespace faquant {

// Compares the kernels of `table` that multiply with plain loops or the portable kernels, bit for bit, on all shapes
// that they treat differently. The self-test, which runs at every start, has time for a few. Returns the first shape
// with a difference, or nothing.
std::string first_wrong_shape(const KernelTable& table);

}  // namespace faquant
