#include "shapes.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "guarded.h"
#include "ops/attend.h"
#include "ops/linear.h"
#include "self_test/parts.h"

namespace faquant {
namespace {

// Every number of rows in a strip and one more; some in two strips, and one more.
constexpr int64_t kMostRows = 2 * kStrip + 1;
constexpr int64_t more_rows(int64_t rows) {
    return rows == kStrip + 1 ? kStrip + 8 : rows == kStrip + 8 ? 2 * kStrip - 1 : rows + 1;
}
constexpr uint8_t kExtremes[] = {0, 1, 127, 128, 129, 255};

// Half of them extreme as uint8 and as int8, and some whole rows too.
void fill(Random& random, uint8_t* bytes, int64_t rows, int64_t size) {
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < size; ++i) {
            const uint8_t any = random.next();
            bytes[r * size + i] = random.next() % 2 == 0 ? any : kExtremes[any % 6];
        }
        if (r % 4 == 3) {
            std::fill_n(bytes + r * size, size, kExtremes[r / 4 % 6]);
        }
    }
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::string shape(const char* what, int64_t rows, int64_t depth, int64_t columns) {
    return std::string(what) + " of " + std::to_string(rows) + " rows, depth " + std::to_string(depth) + ", " +
           std::to_string(columns) + " columns";
}

// Unsigned rows and a signed packed weight; a row of inputs has one or two rows of bytes.
std::string wrong_linear(const KernelTable& table, int64_t inputs, int64_t outputs, int64_t most_rows, int64_t parts) {
    Random random;
    const int64_t depth = padded_inputs(inputs);
    std::vector<uint8_t> weight(static_cast<size_t>(inputs * outputs));
    fill(random, weight.data(), outputs, inputs);
    const auto* signed_weight = reinterpret_cast<const int8_t*>(weight.data());
    const Guarded<int8_t> packed(static_cast<size_t>(depth * padded_outputs(outputs)));
    std::vector<int32_t> totals(static_cast<size_t>(outputs)), zeros(static_cast<size_t>(most_rows));
    std::iota(zeros.begin(), zeros.end(), 100);
    pack_weight(signed_weight, outputs, inputs, packed.data(), totals.data(), 1);
    const std::vector<float> ones(static_cast<size_t>(outputs), 1.0f);
    const std::vector<int32_t> no_bias(static_cast<size_t>(outputs));
    Linear linear{};
    linear.inputs = inputs;
    linear.outputs = outputs;
    linear.weight = packed.data();
    linear.totals = totals.data();
    linear.quant_bias = no_bias.data();
    linear.scale = linear.input_scale = linear.input_offset = ones.data();
    if (parts == 2) {
        linear.input_scale = nullptr;
        linear.input_steps = kWideSteps;
    }

    std::vector<uint8_t> all(static_cast<size_t>(most_rows * parts * inputs));
    fill(random, all.data(), most_rows * parts, inputs);
    std::vector<float> exact;
    for (int64_t i = 0; i < most_rows * outputs; ++i) {
        const int8_t* column = signed_weight + i % outputs * inputs;
        const int64_t excess =
            int64_t{zeros[static_cast<size_t>(i / outputs)]} * totals[static_cast<size_t>(i % outputs)];
        int64_t sum = 0;
        for (int64_t part = 0; part < parts; ++part) {
            const uint8_t* row = all.data() + (i / outputs * parts + part) * inputs;
            sum = 256 * sum + std::inner_product(row, row + inputs, column, int32_t{0}) - excess;
        }
        exact.push_back(static_cast<float>(sum));
    }
    std::vector<float> scales(static_cast<size_t>(most_rows), 1.0f);
    for (int64_t rows = 1; rows <= most_rows; rows = more_rows(rows)) {
        const Guarded<uint8_t> bytes(static_cast<size_t>(rows * parts * depth));
        for (int64_t r = 0; r < rows * parts; ++r) {
            std::copy_n(all.data() + r * inputs, inputs, bytes.data() + r * depth);
        }
        std::vector<float> out(static_cast<size_t>(rows * outputs));
        const int64_t panels = (outputs + kPanel - 1) / kPanel;
        table.linear_panels(linear, {rows, bytes.data(), scales.data(), zeros.data()}, 0, panels, false, out.data());
        if (!std::equal(out.begin(), out.end(), exact.begin())) {
            return shape(parts == 2 ? "int8 linear of 16-bit inputs" : "int8 linear", rows, inputs, outputs);
        }
    }
    return "";
}

std::string wrong_float_linear(const KernelTable& table, int64_t inputs, int64_t outputs, bool is_bfloat16) {
    constexpr int64_t kFloatRows = 13;
    Random random;
    const auto numbers = random.floats(outputs * inputs, 0.37f), x = random.floats(kFloatRows * inputs, 0.23f);
    std::vector<uint16_t> halves;
    for (const float number : numbers) {
        uint32_t bits;
        std::memcpy(&bits, &number, sizeof bits);
        halves.push_back(static_cast<uint16_t>(bits >> 16));
    }
    const int64_t words = is_bfloat16 ? (inputs + 1) / 2 : inputs;
    const Guarded<float> packed(static_cast<size_t>(words * padded_outputs(outputs)));
    const void* weight = is_bfloat16 ? static_cast<const void*>(halves.data()) : numbers.data();
    pack_float_weight(weight, is_bfloat16, outputs, inputs, packed.data(), 1);
    FloatLinear linear{inputs, outputs, packed.data(), nullptr, nullptr};
    if (is_bfloat16) {
        linear.weight = nullptr;
        linear.bfloat16_weight = reinterpret_cast<const uint16_t*>(packed.data());
    }
    for (int64_t rows = 1; rows <= kFloatRows; ++rows) {
        std::vector<float> out(static_cast<size_t>(rows * outputs)), expected = out;
        const int64_t panels = (outputs + kPanel - 1) / kPanel;
        table.float_panels(linear, x.data(), rows, 0, panels, out.data());
        kPortableKernels.float_panels(linear, x.data(), rows, 0, panels, expected.data());
        if (!same_bits(out, expected)) {
            return shape(is_bfloat16 ? "bfloat16 linear" : "float32 linear", rows, inputs, outputs);
        }
    }
    return "";
}

// A cache of two tiles in which every byte is possible.
struct Bytes {
    static constexpr int64_t kKeys = 2 * kTile;
    Guarded<uint8_t> k, v;
    std::vector<uint16_t> k_scale, v_scale;
    Cache cache;

    Bytes(Random& random, int64_t padded)
        : k(static_cast<size_t>(kKeys * padded)),
          v(static_cast<size_t>(kKeys * padded)),
          // 2^-14, so that scores of the rows differ by little, and about 2^-6.
          k_scale(kKeys, 0x0400),
          v_scale(kKeys, 0x2400),
          cache{1, kKeys, k.data(), reinterpret_cast<int8_t*>(v.data()), k_scale.data(), v_scale.data()} {
        fill(random, k.data(), kKeys, padded);
        fill(random, v.data(), kKeys, padded);
        for (uint16_t& scale : v_scale) {
            scale = static_cast<uint16_t>(scale + random.next());
        }
    }
};

// Signed rows of q with unsigned packed keys, then unsigned rows of P with signed packed values. The sum of the softmax
// is not rounded to integers, and so shows a difference of one in a score.
std::string wrong_attention(const KernelTable& table, int64_t dim, int32_t p_levels) {
    Random random;
    Scheme scheme{};
    scheme.heads = scheme.kv_heads = scheme.maps = 1;
    scheme.dim = dim;
    scheme.map_block = kTile;
    scheme.p_levels = p_levels;
    // As large as the steps of q, so that all of int8 occurs.
    const float step = 1.0f;
    scheme.q_scale = &step;
    const Bytes bytes(random, padded_dim(dim));
    std::vector<uint8_t> q_bytes(static_cast<size_t>(kMostRows * dim));
    fill(random, q_bytes.data(), kMostRows, dim);
    std::vector<float> q;
    for (const uint8_t byte : q_bytes) {
        q.push_back(static_cast<float>(static_cast<int8_t>(byte)));
    }
    const int64_t page = 0;
    for (int64_t rows = 1; rows <= kMostRows; rows = more_rows(rows)) {
        const Span span = {0, rows, Bytes::kKeys - kMostRows, &page};
        const auto run = [&](const KernelTable& kernels) {
            std::vector<float> out(static_cast<size_t>(rows * dim));
            attend(kernels, {&scheme, &bytes.cache, Bytes::kKeys, kTile, q.data(), out.data()}, &span, 1, 1);
            return out;
        };
        if (!same_bits(run(table), run(kPortableKernels))) {
            return shape("int8 attention", rows, dim, kTile) + ", P to " + std::to_string(p_levels);
        }
    }
    return "";
}

std::string wrong_float_attention(const KernelTable& table, int64_t dim, bool is_bfloat16) {
    constexpr int64_t kKeys = 2 * kTile;
    Random random;
    Scheme sizes{};
    sizes.heads = sizes.kv_heads = 1;
    sizes.dim = dim;
    const auto k = random.floats(kKeys * dim, 0.05f), v = random.floats(kKeys * dim, 0.02f);
    const auto q = random.floats(kMostRows * dim, 0.03f);
    std::vector<int64_t> places(kKeys);
    std::iota(places.begin(), places.end(), 0);
    const Guarded<float> k_store(static_cast<size_t>(kKeys * padded_dim(dim))),
        v_store(static_cast<size_t>(kKeys * padded_dim(dim)));
    Cache cache{};
    cache.pages = 1;
    cache.page_size = kKeys;
    if (is_bfloat16) {
        cache.bfloat16_k = reinterpret_cast<uint16_t*>(k_store.data());
        cache.bfloat16_v = reinterpret_cast<uint16_t*>(v_store.data());
    } else {
        cache.float_k = k_store.data();
        cache.float_v = v_store.data();
    }
    int64_t saturated[2];
    append(kPortableKernels, sizes, cache, k.data(), v.data(), places.data(), places.data(), kKeys, 1, saturated);
    const int64_t page = 0;
    for (int64_t rows = 1; rows <= kMostRows; rows = more_rows(rows)) {
        const Span span = {0, rows, kKeys - kMostRows, &page};
        const auto run = [&](const KernelTable& kernels) {
            std::vector<float> out(static_cast<size_t>(rows * dim));
            attend(kernels, {&sizes, &cache, kKeys, kTile, q.data(), out.data()}, &span, 1, 1);
            return out;
        };
        if (!same_bits(run(table), run(kPortableKernels))) {
            return shape(is_bfloat16 ? "bfloat16 attention" : "float32 attention", rows, dim, kTile);
        }
    }
    return "";
}

// Every scale that a key may have: each query sees only one key, so that its output is a value times the scale.
std::string wrong_scale(const KernelTable& table) {
    constexpr int64_t kDim = kPadding;
    constexpr uint16_t kInfinite = 0x7c00;
    Random random;
    Scheme scheme{};
    scheme.heads = scheme.kv_heads = scheme.maps = 1;
    scheme.dim = kDim;
    scheme.map_block = kTile;
    scheme.p_levels = 255;
    Bytes bytes(random, kDim);
    const auto q = random.floats(kTile * kDim, 0.01f);
    const int64_t page = 0;
    const Span span = {0, kTile, 0, &page};
    for (int64_t first = 0; first < kInfinite; first += kTile) {
        std::iota(bytes.v_scale.begin(), bytes.v_scale.begin() + kTile, static_cast<uint16_t>(first));
        const auto run = [&](const KernelTable& kernels) {
            std::vector<float> out(static_cast<size_t>(kTile * kDim));
            attend(kernels, {&scheme, &bytes.cache, 1, kTile, q.data(), out.data()}, &span, 1, 1);
            return out;
        };
        if (!same_bits(run(table), run(kPortableKernels))) {
            return "scales from float16 " + std::to_string(first);
        }
    }
    return "";
}

}  // namespace

std::string first_wrong_shape(const KernelTable& table) {
    // One to five words, with every remainder; whole and cut panels; the longest sum that is sure to fit.
    std::vector<int64_t> lengths(20);
    std::iota(lengths.begin(), lengths.end(), 1);
    lengths.insert(lengths.end(), {63, 64, 65, 127, 128, 129, 500});
    for (const auto& found :
         {wrong_linear(table, kMaxDotLength, kPadding, kStrip + 1, 1),
          wrong_linear(table, kMaxDotLength, kPadding, kStrip / 2 + 1, 2), wrong_linear(table, 515, 80, kMostRows, 1),
          wrong_linear(table, 515, 80, kMostRows, 2), wrong_linear(table, 1024, 47, kMostRows, 1),
          wrong_linear(table, 1100, 80, kMostRows, 1), wrong_linear(table, 1100, 80, kMostRows, 2)}) {
        if (!found.empty()) {
            return found;
        }
    }
    for (const int64_t outputs : {1, 16, 32, 47, 64, 80}) {
        for (const int64_t inputs : lengths) {
            for (const auto& found :
                 {wrong_linear(table, inputs, outputs, kMostRows, 1),
                  wrong_linear(table, inputs, outputs, kMostRows, 2), wrong_float_linear(table, inputs, outputs, false),
                  wrong_float_linear(table, inputs, outputs, true)}) {
                if (!found.empty()) {
                    return found;
                }
            }
        }
    }
    if (&table == &kPortableKernels) {
        return "";
    }
    for (const int64_t dim : {5, 16, 32, 48, 64, 72, 128}) {
        for (const auto& found : {wrong_attention(table, dim, 255), wrong_attention(table, dim, 32767),
                                  wrong_float_attention(table, dim, false), wrong_float_attention(table, dim, true)}) {
            if (!found.empty()) {
                return found;
            }
        }
    }
    return wrong_scale(table);
}

}  // namespace faquant
