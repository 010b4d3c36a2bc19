// The self-test of every instruction set that this CPU has, without Python: for other architectures.

#include <cstdio>
#include <cstring>

#include "dispatch.h"
#include "self_test.h"

int main() {
    int wrong = 0;
    for (const faquant::KernelTable* table : faquant::available_kernels()) {
        const char* kernel = faquant::first_wrong_kernel(*table);
        std::printf("%s: %s\n", table->name, kernel == nullptr ? "passed" : kernel);
        wrong += kernel != nullptr;
    }
    for (const faquant::FaultReport& report : faquant::reports_of_faults()) {
        if (report.reported == nullptr || std::strcmp(report.reported, report.kernel) != 0) {
            std::printf("%s, %s: not noticed\n", report.kernel, report.fault);
            ++wrong;
        }
    }
    return wrong == 0 ? 0 : 1;
}
