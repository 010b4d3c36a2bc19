#pragma once

#include <vector>

namespace faquant {

// What the self-test says of a table with one slightly wrong kernel.
struct FaultReport {
    const char* kernel;
    const char* fault;
    const char* reported;  // as first_wrong_kernel
};

// Of at least one fault in each kernel.
std::vector<FaultReport> reports_of_faults();

}  // namespace faquant
