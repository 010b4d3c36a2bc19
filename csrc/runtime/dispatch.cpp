#include "runtime/dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "runtime/cpu_features.h"
#include "self_test/self_test.h"

namespace faquant {
namespace {

// Of this build, best first.
constexpr const KernelTable* kTables[] = {
#ifdef FAQUANT_AMX
    &kAmxKernels,
#endif
#ifdef FAQUANT_X86
    &kAvx512VnniKernels,
#ifdef FAQUANT_AVXVNNI
    &kAvxVnniKernels,
    // Only for tests: the same instructions in another encoding.
    &kAvxVnniEvexKernels,
#endif
    &kAvx2Kernels,
#endif
#ifdef FAQUANT_NEON
    &kNeonI8mmKernels,
    &kNeonDotKernels,
#endif
    &kPortableKernels,
};

// The features that the table requires and this CPU lacks.
uint32_t lacking(const KernelTable& table) {
    static const uint32_t cpu = detect_cpu_features();
    return table.features & ~cpu;
}

std::string names(const std::vector<const KernelTable*>& tables) {
    std::string text;
    for (const KernelTable* table : tables) {
        text += (text.empty() ? "" : ", ") + std::string(table->name);
    }
    return text;
}

Selection select_kernels() {
    const char* forced = std::getenv("FAQUANT_ISA");
    if (forced != nullptr && *forced != '\0') {
        const KernelTable* table = nullptr;
        try {
            table = &find_kernels(forced);
        } catch (const UsageError& error) {
            throw UsageError(std::string("The environment variable FAQUANT_ISA: ") + error.what());
        }
        if (const char* kernel = first_wrong_kernel(*table)) {
            throw UsageError(std::string("The environment variable FAQUANT_ISA asks for ") + table->name +
                             ", but its kernel " + kernel +
                             " computes wrong results on this machine. Unset it, or use portable.");
        }
        return {table, ""};
    }
    std::string warning;
    for (const KernelTable* table : available_kernels()) {
        const char* kernel = first_wrong_kernel(*table);
        if (kernel == nullptr) {
            return {table, warning};
        }
        warning += (warning.empty() ? "" : " ") + std::string("The ") + table->name +
                   " kernels are not used, because " + kernel + " computes wrong results on this machine.";
    }
    throw std::runtime_error(warning + " No kernels are left; this build of faquant is broken.");
}

}  // namespace

const std::vector<const KernelTable*>& available_kernels() {
    static const std::vector<const KernelTable*> tables = [] {
        std::vector<const KernelTable*> list;
        std::copy_if(std::begin(kTables), std::end(kTables), std::back_inserter(list),
                     [](const KernelTable* table) { return lacking(*table) == 0; });
        return list;
    }();
    return tables;
}

const KernelTable& find_kernels(const std::string& name) {
    for (const KernelTable* table : kTables) {
        if (name != table->name) {
            continue;
        }
        if (lacking(*table) == 0) {
            return *table;
        }
        const std::string reason = lacking(*table) == kAmxPermitted
                                       ? "the operating system does not permit this process to use the tiles of"
                                       : "this CPU lacks the instructions of";
        throw UsageError(reason + " '" + name + "'. Choose one of: " + names(available_kernels()) + ".");
    }
    throw UsageError("'" + name +
                     "' is not an instruction set of this build. Choose one of: " + names(available_kernels()) + ".");
}

const Selection& selected_kernels() {
    static const Selection selection = select_kernels();
    return selection;
}

}  // namespace faquant
