#include "ops/rope_tables.h"

#include <cstring>

namespace faquant {
namespace {

struct Angle {
    double cos, sin;
};

// Both with an error of at most 2^-52. x = n · π/2 + r with n = rint(x · 2/π), and π/2 in parts of 24 bits, so that
// their products with n are exact; the polynomials are Taylor's, with a remainder below 2^-58 for |r| <= π/4.
Angle cos_and_sin(double x) {
    constexpr double kRounder = 0x1.8p52;
    const double shifted = x * 0x1.45f306dc9c883p-1 + kRounder;
    const double n = shifted - kRounder;
    double r = x - n * 0x1.921fb4p+0;
    r = r - n * 0x1.4442dp-24;
    r = r - n * 0x1.846988p-48;
    r = r - n * 0x1.8cc51701b839ap-72;
    const double z = r * r;
    double s = z * (1.0 / 355687428096000) - 1.0 / 1307674368000;
    s = s * z + 1.0 / 6227020800;
    s = s * z - 1.0 / 39916800;
    s = s * z + 1.0 / 362880;
    s = s * z - 1.0 / 5040;
    s = s * z + 1.0 / 120;
    s = s * z - 1.0 / 6;
    s = r + r * z * s;
    double c = z * (1.0 / 20922789888000) - 1.0 / 87178291200;
    c = c * z + 1.0 / 479001600;
    c = c * z - 1.0 / 3628800;
    c = c * z + 1.0 / 40320;
    c = c * z - 1.0 / 720;
    c = c * z + 1.0 / 24;
    c = (1.0 - 0.5 * z) + z * z * c;
    uint64_t quadrant;
    std::memcpy(&quadrant, &shifted, sizeof quadrant);
    const double cosine = (quadrant & 1) != 0 ? s : c, sine = (quadrant & 1) != 0 ? c : s;
    return {((quadrant + 1) & 2) != 0 ? -cosine : cosine, (quadrant & 2) != 0 ? -sine : sine};
}

}  // namespace

void rope_tables(const float* frequencies, int64_t count, const int64_t* positions, int64_t tokens, float scaling,
                 float* cos, float* sin) {
    for (int64_t t = 0; t < tokens; ++t, cos += 2 * count, sin += 2 * count) {
        const auto position = static_cast<float>(positions[t]);
        for (int64_t i = 0; i < count; ++i) {
            const float x = position * frequencies[i];
            const Angle angle = cos_and_sin(static_cast<double>(x));
            cos[i] = cos[i + count] = static_cast<float>(angle.cos) * scaling;
            sin[i] = sin[i + count] = static_cast<float>(angle.sin) * scaling;
        }
    }
}

}  // namespace faquant
