#include "self_test/self_test.h"

#include <cmath>
#include <cstddef>
#include <cstring>
#include <vector>

#include "self_test/parts.h"

namespace faquant {
namespace {

// A kernel that can be copied from another table to `to`.
struct Kernel {
    const char* name;
    void (*take)(KernelTable& to, const KernelTable& from);
};

template <auto kernel>
void take(KernelTable& to, const KernelTable& from) {
    to.*kernel = from.*kernel;
}

constexpr Kernel kKernels[] = {{"append", take<&KernelTable::append>},
                               {"attend", take<&KernelTable::attend>},
                               {"quantize_inputs", take<&KernelTable::quantize_inputs>},
                               {"linear_panels", take<&KernelTable::linear_panels>},
                               {"gated_panels", take<&KernelTable::gated_panels>},
                               {"float_panels", take<&KernelTable::float_panels>},
                               {"rms_norm", take<&KernelTable::rms_norm>},
                               {"rope", take<&KernelTable::rope>},
                               {"silu_times", take<&KernelTable::silu_times>},
                               {"gelu_times", take<&KernelTable::gelu_times>},
                               {"finish", take<&KernelTable::finish>},
                               {"block_maxima", take<&KernelTable::block_maxima>},
                               {"block_weights", take<&KernelTable::block_weights>}};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

const char* wrong_kernel_in(const KernelTable& table, const char* name, const Run& run,
                            const std::vector<double>& exact, double tolerance) {
    const std::vector<float> expected = run(kPortableKernels);
    for (size_t i = 0; i < exact.size(); ++i) {
        // Written so that NaN fails.
        if (!(std::abs(expected[i] - exact[i]) <= tolerance * (1 + std::abs(exact[i])))) {
            return name;
        }
    }
    if (same_bits(run(table), expected)) {
        return nullptr;
    }
    for (const Kernel& kernel : kKernels) {
        KernelTable with_one = kPortableKernels;
        kernel.take(with_one, table);
        if (!same_bits(run(with_one), expected)) {
            return kernel.name;
        }
    }
    return name;
}

const char* first_wrong_kernel(const KernelTable& table) {
    for (const auto& find :
         {wrong_kernel_in_dots, wrong_kernel_in_norms, wrong_kernel_in_rope, wrong_kernel_in_silu, wrong_kernel_in_gelu,
          wrong_kernel_in_maxima, wrong_kernel_in_weights, wrong_kernel_in_linears, wrong_kernel_in_gated_linears,
          wrong_kernel_in_float_linears, wrong_kernel_in_attention, wrong_kernel_in_layers}) {
        if (const char* kernel = find(table)) {
            return kernel;
        }
    }
    return nullptr;
}

}  // namespace faquant
