#define FAQUANT_UNIT
#include "isa/kernels.h"

namespace faquant {
namespace {

#include "isa/plain-inl.h"

// After the primitives that it uses.
#include "generic/table-inl.h"

}  // namespace

constexpr KernelTable kPortableKernels = table_of("portable", 0);

}  // namespace faquant
