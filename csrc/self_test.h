#pragma once

#include <vector>

#include "kernels.h"

namespace faquant {

// Compares every kernel of `table` with the portable one, bit for bit, and with a plain loop, on extreme and on
// pseudo-random values. Returns the name of the first kernel that differs, or nullptr. The CPU must have the table's
// instructions.
const char* first_wrong_kernel(const KernelTable& table);

// What the self-test says of a table with one slightly wrong kernel.
struct FaultReport {
    const char* kernel;
    const char* fault;
    const char* reported;  // as first_wrong_kernel
};

// Of at least one fault in each kernel.
std::vector<FaultReport> reports_of_faults();

}  // namespace faquant
