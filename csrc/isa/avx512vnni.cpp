#define FAQUANT_UNIT
#include <immintrin.h>

#include "isa/kernels.h"

namespace faquant {
namespace {

#include "isa/vectors_512-inl.h"

constexpr int64_t kColumns = kFloatLanes;
constexpr int kMostBlocks = 4, kMostFloatBlocks = 4;

#include "generic/multiply_floats-inl.h"
#include "generic/multiply_vnni-inl.h"
#include "generic/table-inl.h"

}  // namespace

constexpr KernelTable kAvx512VnniKernels =
    table_of("avx512vnni", kAvx2 | kAvx512F | kAvx512Bw | kAvx512Vl | kAvx512Vnni);

}  // namespace faquant
