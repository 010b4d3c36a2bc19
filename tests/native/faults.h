#pragma once

#include <vector>

namespace faquant {

// The self-test's report about a table with one slightly wrong kernel.
struct FaultReport {
    const char* kernel;
    const char* fault;
    const char* reported;  // as first_wrong_kernel
};

// Reports for at least one fault in each kernel.
std::vector<FaultReport> reports_of_faults();

}  // namespace faquant
