#pragma once

#include <cmath>
#include <limits>

#include "isa/kernels.h"

namespace faquant {
namespace {

// What faults are put into.
const KernelTable& right = kPortableKernels;

void nudge(float& x) {
    x = std::nextafter(x, std::numeric_limits<float>::infinity());
}

}  // namespace
}  // namespace faquant
