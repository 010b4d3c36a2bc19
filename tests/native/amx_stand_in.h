#pragma once

#include "isa/kernels.h"

namespace faquant {

extern const KernelTable kAmxStandInKernels;

}  // namespace faquant
