#pragma once

#include <cmath>
#include <limits>

#include "isa/kernels.h"

namespace faquant {
namespace {

// The right kernels, into which faults are injected.
const KernelTable& right = kPortableKernels;

void nudge(float& x) {
    x = std::nextafter(x, std::numeric_limits<float>::infinity());
}

}  // namespace
}  // namespace faquant
