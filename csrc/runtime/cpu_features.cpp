#include "runtime/cpu_features.h"

#include <cstring>

#if defined(FAQUANT_X86)
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace faquant {

#ifdef FAQUANT_X86

namespace {

struct Registers {
    uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
    Registers r;
    if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) {
        return {};
    }
    return r;
}

bool bit(uint32_t word, int index) {
    return ((word >> index) & 1u) != 0;
}

// XCR0: which register states the operating system saves. Valid only where CPUID reports OSXSAVE.
uint64_t saved_states() {
    uint32_t low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
}

// Whether palette 1 has what csrc/isa/amx.cpp configures, eight tiles of 16 rows of 64 bytes, and products take them.
bool has_whole_tiles() {
    const Registers palette = cpuid(0x1d, 1), products = cpuid(0x1e, 0);
    const uint32_t tiles = palette.ebx >> 16, row_bytes = palette.ebx & 0xffff, rows = palette.ecx & 0xffff;
    const uint32_t depth = products.ebx & 0xff, line_bytes = (products.ebx >> 8) & 0xffff;
    return tiles >= 8 && row_bytes >= 64 && rows >= 16 && depth >= 16 && line_bytes >= 64;
}

// Linux lets a process use tiles only after it has asked, and refuses if a thread's alternate signal stack is too
// small.
bool may_use_tiles() {
#ifdef __linux__
    constexpr int kGetPermissions = 0x1022, kRequestPermission = 0x1023, kTileData = 18;
    uint64_t permitted = 0;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 &&
           syscall(SYS_arch_prctl, kGetPermissions, &permitted) == 0 && ((permitted >> kTileData) & 1u) != 0;
#else
    return false;
#endif
}

}  // namespace

uint32_t detect_cpu_features() {
    constexpr uint64_t kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000;
    const Registers one = cpuid(1, 0);
    if (!bit(one.ecx, 27)) {
        return 0;
    }
    const uint64_t saved = saved_states();
    const Registers seven = cpuid(7, 0);
    const Registers seven_one = seven.eax >= 1 ? cpuid(7, 1) : Registers{};
    uint32_t features = 0;
    const auto add = [&](CpuFeature feature, uint64_t states, bool has) {
        features |= has && (saved & states) == states ? feature : 0u;
    };
    add(kAvx2, kYmm, bit(seven.ebx, 5));
    add(kFma, kYmm, bit(one.ecx, 12));
    add(kF16c, kYmm, bit(one.ecx, 29));
    add(kAvxVnni, kYmm, bit(seven_one.eax, 4));
    add(kAvx512F, kZmm, bit(seven.ebx, 16));
    add(kAvx512Bw, kZmm, bit(seven.ebx, 30));
    add(kAvx512Vl, kZmm, bit(seven.ebx, 31));
    add(kAvx512Vnni, kZmm, bit(seven.ecx, 11));
    add(kAvx512Bf16, kZmm, bit(seven_one.eax, 5));
    add(kAmxInt8, kTiles, bit(seven.edx, 24) && bit(seven.edx, 25) && has_whole_tiles());
    add(kAmxPermitted, kTiles, (features & kAmxInt8) != 0 && may_use_tiles());
    return features;
}

std::string cpu_brand() {
    if (static_cast<uint32_t>(__get_cpuid_max(0x80000000u, nullptr)) < 0x80000004u) {
        return {};
    }
    char text[49] = {};
    for (uint32_t part = 0; part < 3; ++part) {
        const Registers r = cpuid(0x80000002u + part, 0);
        std::memcpy(text + 16 * part, &r, 16);
    }
    const std::string brand(text);
    const size_t first = brand.find_first_not_of(' ');
    return first == std::string::npos ? std::string() : brand.substr(first, brand.find_last_not_of(' ') - first + 1);
}

#else

#if defined(__aarch64__) && defined(__linux__)

uint32_t detect_cpu_features() {
    // Of Linux's <asm/hwcap.h>; older ones lack the second.
    constexpr unsigned long kHwcapAsimdDp = 1ul << 20, kHwcap2I8mm = 1ul << 13;
    uint32_t features = 0;
    features |= (getauxval(AT_HWCAP) & kHwcapAsimdDp) != 0 ? kAsimdDp : 0u;
    features |= (getauxval(AT_HWCAP2) & kHwcap2I8mm) != 0 ? kI8mm : 0u;
    return features;
}

#elif defined(__aarch64__) && defined(__APPLE__)

uint32_t detect_cpu_features() {
    const auto has = [](const char* name) {
        int value = 0;
        size_t size = sizeof value;
        return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
    };
    uint32_t features = 0;
    features |= has("hw.optional.arm.FEAT_DotProd") ? kAsimdDp : 0u;
    features |= has("hw.optional.arm.FEAT_I8MM") ? kI8mm : 0u;
    return features;
}

#else

uint32_t detect_cpu_features() {
    return 0;
}

#endif

std::string cpu_brand() {
    return {};
}

#endif

}  // namespace faquant
