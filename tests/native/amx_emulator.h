#pragma once

namespace faquant {

// On Linux on an x86-64 CPU that lacks only AMX of what the unit `amx` needs: emulates AMX's instructions from then on,
// where the CPU refuses to execute them, with amx_machine of each thread. Returns false elsewhere.
bool emulate_amx();

}  // namespace faquant
