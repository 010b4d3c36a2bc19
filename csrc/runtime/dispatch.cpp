#include "runtime/dispatch.h"

#include <cstdlib>

#include "runtime/cpu_features.h"
#include "self_test/self_test.h"

namespace faquant {
namespace {

struct Candidate {
    const KernelTable* kernels;
    bool supported;
};

// Best first.
std::vector<Candidate> candidates() {
    std::vector<Candidate> list;
#ifdef FAQUANT_X86
    const CpuFeatures cpu = detect_cpu_features();
    const bool avx512vnni = cpu.avx2 && cpu.avx512f && cpu.avx512bw && cpu.avx512vl && cpu.avx512_vnni;
    list.push_back({&kAvx512VnniKernels, avx512vnni});
#ifdef FAQUANT_AVXVNNI
    list.push_back({&kAvxVnniKernels, cpu.avx2 && cpu.fma && cpu.f16c && cpu.avx_vnni});
    // Only there to be tested: the same instructions otherwise encoded.
    list.push_back({&kAvxVnniEvexKernels, avx512vnni && cpu.fma && cpu.f16c});
#endif
    list.push_back({&kAvx2Kernels, cpu.avx2 && cpu.fma && cpu.f16c});
#endif
    list.push_back({&kPortableKernels, true});
    return list;
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
        for (const Candidate& candidate : candidates()) {
            if (candidate.supported) {
                list.push_back(candidate.kernels);
            }
        }
        return list;
    }();
    return tables;
}

const KernelTable& find_kernels(const std::string& name) {
    for (const Candidate& candidate : candidates()) {
        if (name != candidate.kernels->name) {
            continue;
        }
        if (candidate.supported) {
            return *candidate.kernels;
        }
        throw UsageError("this CPU lacks the instructions of '" + name +
                         "'. Choose one of: " + names(available_kernels()) + ".");
    }
    throw UsageError("'" + name +
                     "' is no instruction set that this build has. Choose one of: " + names(available_kernels()) + ".");
}

const Selection& selected_kernels() {
    static const Selection selection = select_kernels();
    return selection;
}

}  // namespace faquant
