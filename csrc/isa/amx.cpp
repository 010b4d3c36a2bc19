// AVX512-VNNI, and AMX's tiles for the products of at least 16 rows of bytes.
#define FAQUANT_UNIT
#include <immintrin.h>

#include "isa/kernels.h"

namespace faquant {
namespace {

#include "isa/amx_tiles-inl.h"
#include "isa/vectors_512-inl.h"

constexpr int64_t kColumns = kFloatLanes;
constexpr int kMostBlocks = 4, kMostFloatBlocks = 4;

#include "generic/multiply_floats-inl.h"
#include "generic/multiply_vnni-inl.h"
#include "isa/multiply_amx-inl.h"

// After the specializations for tiles.
#include "generic/table-inl.h"

}  // namespace

constexpr KernelTable kAmxKernels =
    table_of("amx", kAvx2 | kAvx512F | kAvx512Bw | kAvx512Vl | kAvx512Vnni | kAmxInt8 | kAmxPermitted);

}  // namespace faquant
