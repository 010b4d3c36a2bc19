// Runs the self-test for every instruction set of this CPU, and for faults that it must detect, without Python.

#include <cstdio>
#include <cstring>

#include "faults.h"
#include "runtime/dispatch.h"
#include "self_test/self_test.h"

int main() {
    int wrong = 0;
    for (const faquant::KernelTable* table : faquant::available_kernels()) {
        const char* kernel = faquant::first_wrong_kernel(*table);
        std::printf("self-test of %s: %s\n", table->name, kernel == nullptr ? "passed" : kernel);
        wrong += kernel != nullptr;
    }
    for (const faquant::FaultReport& report : faquant::reports_of_faults()) {
        const bool noticed = report.reported != nullptr && std::strcmp(report.reported, report.kernel) == 0;
        std::printf("fault in %s, %s: %s\n", report.kernel, report.fault, noticed ? "noticed" : "not noticed");
        wrong += !noticed;
    }
    return wrong == 0 ? 0 : 1;
}
