#include "amx_emulator.h"

#if defined(FAQUANT_AMX) && defined(__linux__)

#include <signal.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>

#include "amx_machine.h"
#include "isa/kernels.h"
#include "runtime/cpu_features.h"

namespace faquant {
namespace {

// Of the general registers, in the order of their numbers in instructions.
constexpr int kRegisters[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

// An instruction of AMX with a VEX prefix of three bytes, map 0F38, W 0 and L 0, as all of AMX-TILE and AMX-INT8.
class Instruction {
  public:
    explicit Instruction(const greg_t* registers)
        : registers_(registers), next_(reinterpret_cast<const uint8_t*>(registers[REG_RIP])) {
        const uint8_t *prefix = next_, modrm = next_[4];
        is_amx_ = prefix[0] == 0xc4 && (prefix[1] & 0x1f) == 2 && (prefix[2] & 0x84) == 0 &&
                  (prefix[3] == 0x49 || prefix[3] == 0x4b || prefix[3] == 0x5e);
        if (!is_amx_) {
            return;
        }
        index_high_ = (prefix[1] & 0x40) == 0 ? 8 : 0;
        base_high_ = (prefix[1] & 0x20) == 0 ? 8 : 0;
        third_ = ~(prefix[2] >> 3) & 15;
        kind_ = prefix[3] << 8 | (prefix[2] & 3);
        mode_ = modrm >> 6;
        first_ = (modrm >> 3) & 7;
        second_ = modrm & 7;
        next_ += 5;
        if (mode_ != 3) {
            read_address();
        }
    }

    // Whether it was one; then `next` is the address after it.
    bool run(AmxMachine& machine) const {
        constexpr int kNone = 0, k66 = 1, kF3 = 2, kF2 = 3;  // the prefixes that VEX encodes
        auto* memory = reinterpret_cast<void*>(address_);
        const bool in_memory = mode_ != 3;
        if (!is_amx_) {
            return false;
        }
        if (kind_ == (0x49 << 8 | kNone) && in_memory) {
            machine.configure(memory);
        } else if (kind_ == (0x49 << 8 | kNone) && first_ == 0 && second_ == 0) {
            machine.release();
        } else if (kind_ == (0x49 << 8 | kF2) && !in_memory && second_ == 0) {
            machine.zero(first_);
        } else if (kind_ == (0x4b << 8 | kF2) && in_memory && has_index_byte_) {
            machine.load(first_, memory, stride_);
        } else if (kind_ == (0x4b << 8 | kF3) && in_memory && has_index_byte_) {
            machine.store(first_, memory, stride_);
        } else if (kind_ == (0x5e << 8 | k66) && !in_memory && third_ < AmxMachine::kTiles) {
            machine.add_products<uint8_t, int8_t>(first_, second_, third_);  // tdpbusd
        } else if (kind_ == (0x5e << 8 | kF3) && !in_memory && third_ < AmxMachine::kTiles) {
            machine.add_products<int8_t, uint8_t>(first_, second_, third_);  // tdpbsud
        } else {
            AmxMachine::fail("an instruction that is not emulated");
        }
        return true;
    }

    const uint8_t* next() const { return next_; }

  private:
    int64_t value(int number) const { return registers_[kRegisters[number]]; }

    template <typename Displacement>
    int64_t read() {
        Displacement displacement;
        std::memcpy(&displacement, next_, sizeof displacement);
        next_ += sizeof displacement;
        return displacement;
    }

    // The index register of an address is the distance between rows.
    void read_address() {
        has_index_byte_ = second_ == 4;
        bool has_base = mode_ != 0 || second_ != 5, from_here = !has_base;
        int base = second_;
        if (has_index_byte_) {
            const uint8_t sib = *next_++;
            const int index = ((sib >> 3) & 7) + index_high_;
            base = sib & 7;
            has_base = mode_ != 0 || base != 5;
            stride_ = index == 4 ? 0 : value(index) * (1 << (sib >> 6));
        }
        address_ = has_base ? value(base + base_high_) : 0;
        if (mode_ == 1) {
            address_ += read<int8_t>();
        } else if (mode_ == 2 || !has_base) {
            address_ += read<int32_t>();
        }
        if (from_here) {
            address_ += reinterpret_cast<int64_t>(next_);
        }
    }

    const greg_t* registers_;
    const uint8_t* next_;
    bool is_amx_ = false, has_index_byte_ = false;
    int index_high_ = 0, base_high_ = 0, mode_ = 0, kind_ = 0;
    int first_ = 0, second_ = 0, third_ = 0;  // operands, in the order of Intel's manual
    int64_t address_ = 0, stride_ = 0;
};

void run_refused_instruction(int signal_number, siginfo_t*, void* context) {
    greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    const Instruction instruction(registers);
    if (instruction.run(amx_machine)) {
        registers[REG_RIP] = reinterpret_cast<greg_t>(instruction.next());
    } else {
        signal(signal_number, SIG_DFL);  // it comes again, and ends the program
    }
}

}  // namespace

bool emulate_amx() {
    const uint32_t lacking = kAmxKernels.features & ~detect_cpu_features();
    if (lacking != (kAmxInt8 | kAmxPermitted)) {
        return false;
    }
    struct sigaction action = {};
    action.sa_sigaction = run_refused_instruction;
    action.sa_flags = SA_SIGINFO;
    return sigaction(SIGILL, &action, nullptr) == 0;
}

}  // namespace faquant

#else

bool faquant::emulate_amx() {
    return false;
}

#endif
