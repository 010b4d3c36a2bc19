#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "isa/kernels.h"

namespace faquant {

// Becomes faquant.errors.UsageError in Python.
struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The tables whose instructions this CPU has, best first; the last is "portable".
const std::vector<const KernelTable*>& available_kernels();

// The available table of this name. Throws UsageError if the name is unknown or the CPU lacks the instructions.
const KernelTable& find_kernels(const std::string& name);

struct Selection {
    const KernelTable* kernels;
    // One sentence for each better table that was skipped because its self-test failed; usually empty.
    std::string warning;
};

// Chosen at the first call and kept: the table that FAQUANT_ISA names, else the best whose self-test passes.
// Throws UsageError if FAQUANT_ISA names one that is unknown, that the CPU lacks, or that fails its self-test.
const Selection& selected_kernels();

}  // namespace faquant
