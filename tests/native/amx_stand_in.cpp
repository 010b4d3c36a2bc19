// The unit `amx` with plain C++ instead of vectors and tiles, for any CPU.
#define FAQUANT_UNIT
#include "amx_stand_in.h"

#include "amx_machine.h"

namespace faquant {
namespace {

#include "isa/plain-inl.h"

// The operations of isa/amx_tiles-inl.h.
constexpr int64_t kAmxRows = AmxMachine::kRows, kAmxWords = AmxMachine::kRowBytes / 4;

void amx_configure() {
    uint8_t shapes[64] = {1};
    for (int tile = 0; tile < AmxMachine::kTiles; ++tile) {
        shapes[16 + 2 * tile] = AmxMachine::kRowBytes;
        shapes[48 + tile] = AmxMachine::kRows;
    }
    amx_machine.configure(shapes);
}

void amx_release() {
    amx_machine.release();
}

template <int tile>
void amx_zero() {
    amx_machine.zero(tile);
}

template <int tile, int offset>
void amx_load(const void* rows, int64_t bytes_between) {
    amx_machine.load(tile, static_cast<const char*>(rows) + offset, bytes_between);
}

template <int tile, int offset>
void amx_store(void* rows, int64_t bytes_between) {
    amx_machine.store(tile, static_cast<char*>(rows) + offset, bytes_between);
}

template <bool packed_unsigned, int sums, int a, int columns>
void amx_add_products() {
    if constexpr (packed_unsigned) {
        amx_machine.add_products<int8_t, uint8_t>(sums, a, columns);
    } else {
        amx_machine.add_products<uint8_t, int8_t>(sums, a, columns);
    }
}

#include "isa/multiply_amx-inl.h"

// After the specializations for tiles.
#include "generic/table-inl.h"

}  // namespace

constexpr KernelTable kAmxStandInKernels = table_of("amx-stand-in", 0);

}  // namespace faquant
