// Runs the self-test and wider comparisons for every instruction set of this CPU, and the self-test for faults that it
// must detect, without Python. An argument is the instruction set that must be selected here.

#include <cstdio>
#include <cstring>
#include <string>

#include "faults.h"
#include "runtime/dispatch.h"
#include "self_test/self_test.h"
#include "shapes.h"

int main(int count, const char** arguments) {
    int wrong = 0;
    const faquant::Selection& selection = faquant::selected_kernels();
    const bool is_expected = count < 2 || std::strcmp(selection.kernels->name, arguments[1]) == 0;
    std::printf("selected: %s%s%s\n", selection.kernels->name, is_expected ? "" : ", not ",
                is_expected ? "" : arguments[1]);
    wrong += !is_expected || !selection.warning.empty();
    for (const faquant::KernelTable* table : faquant::available_kernels()) {
        const char* kernel = faquant::first_wrong_kernel(*table);
        std::printf("self-test of %s: %s\n", table->name, kernel == nullptr ? "passed" : kernel);
        const std::string shape = faquant::first_wrong_shape(*table);
        std::printf("shapes of %s: %s\n", table->name, shape.empty() ? "passed" : shape.c_str());
        wrong += kernel != nullptr || !shape.empty();
    }
    for (const faquant::FaultReport& report : faquant::reports_of_faults()) {
        const bool noticed = report.reported != nullptr && std::strcmp(report.reported, report.kernel) == 0;
        std::printf("fault in %s, %s: %s\n", report.kernel, report.fault, noticed ? "noticed" : "not noticed");
        wrong += !noticed;
    }
    return wrong == 0 ? 0 : 1;
}
