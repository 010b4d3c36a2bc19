#pragma once

#include "kernels.h"

namespace faquant {

// Compares every kernel of `table` with a plain loop, on extreme and on pseudo-random values.
// Returns the name of the first kernel that differs, or nullptr. The CPU must have the table's instructions.
const char* first_wrong_kernel(const KernelTable& table);

// Whether the self-test would notice kernels that saturate pairs at int16, as vpmaddubsw does.
bool self_test_notices_saturation();

}  // namespace faquant
