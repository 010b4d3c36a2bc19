#pragma once

// The definitions that a unit in isa/ makes before it includes the files in generic/, for editors and checks that parse
// one of these files on its own. Units define FAQUANT_UNIT and never use this.

#include "isa/kernels.h"

using namespace faquant;

constexpr int64_t kColumns = 8;
constexpr int kMostBlocks = 1, kMostFloatBlocks = 1;

using Vector = int32_t __attribute__((vector_size(32)));
Vector load(const uint8_t* from);
Vector load(const int32_t* from);
void store(int32_t* to, Vector x);
Vector in_all_lanes(int32_t x);
Vector add_products(Vector sum, Vector unsigned_a, Vector signed_b);

using Floats = float __attribute__((vector_size(32)));
constexpr int64_t kFloatLanes = 8;
constexpr int float_blocks(int) {
    return 2;
}
Floats load_floats(const float* from);
Floats first_rows(const uint8_t* b);
Floats second_rows(const uint8_t* b);
Floats all_lanes(float x);
Floats add_product(Floats sum, Floats a, Floats b);
void store(float* to, Floats x);

#define FAQUANT_REGISTER(x) "+m"(x)
