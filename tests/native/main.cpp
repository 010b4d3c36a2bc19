// Runs the self-test and wider comparisons for every instruction set of this CPU and for stand-ins of AMX, and the
// self-test for faults that it must detect, without Python. An argument is the instruction set that must be selected
// here.

#include <cstdio>
#include <cstring>
#include <string>

#include "amx_emulator.h"
#include "amx_machine.h"
#include "amx_stand_in.h"
#include "faults.h"
#include "runtime/dispatch.h"
#include "self_test/self_test.h"
#include "shapes.h"

namespace {

int wrong_in(const faquant::KernelTable& table, const char* name) {
    const char* kernel = faquant::first_wrong_kernel(table);
    std::printf("self-test of %s: %s\n", name, kernel == nullptr ? "passed" : kernel);
    const std::string shape = faquant::first_wrong_shape(table);
    std::printf("shapes of %s: %s\n", name, shape.empty() ? "passed" : shape.c_str());
    return (kernel != nullptr) + !shape.empty();
}

// The same, with amx_machine instead of AMX, which must be used, and released at the end.
int wrong_in_emulated(const faquant::KernelTable& table, const char* name) {
    const int64_t before = faquant::amx_machine.products;
    int wrong = wrong_in(table, name);
    const int64_t products = faquant::amx_machine.products - before;
    const bool released = !faquant::amx_machine.in_use();
    std::printf("products of tiles in %s: %lld, %s\n", name, static_cast<long long>(products),
                released ? "released" : "not released");
    return wrong + (products == 0) + !released;
}

}  // namespace

int main(int count, const char** arguments) {
    int wrong = 0;
    const faquant::Selection& selection = faquant::selected_kernels();
    const bool is_expected = count < 2 || std::strcmp(selection.kernels->name, arguments[1]) == 0;
    std::printf("selected: %s%s%s\n", selection.kernels->name, is_expected ? "" : ", not ",
                is_expected ? "" : arguments[1]);
    wrong += !is_expected || !selection.warning.empty();
    for (const faquant::KernelTable* table : faquant::available_kernels()) {
        wrong += wrong_in(*table, table->name);
    }
    wrong += wrong_in_emulated(faquant::kAmxStandInKernels, faquant::kAmxStandInKernels.name);
#ifdef FAQUANT_AMX
    if (faquant::emulate_amx()) {
        wrong += wrong_in_emulated(faquant::kAmxKernels, "amx, emulated");
    }
#else
    std::printf("amx: not in this build\n");
#endif
    for (const faquant::FaultReport& report : faquant::reports_of_faults()) {
        const bool noticed = report.reported != nullptr && std::strcmp(report.reported, report.kernel) == 0;
        std::printf("fault in %s, %s: %s\n", report.kernel, report.fault, noticed ? "noticed" : "not noticed");
        wrong += !noticed;
    }
    return wrong == 0 ? 0 : 1;
}
