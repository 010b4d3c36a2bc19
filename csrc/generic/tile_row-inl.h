// The scores of one row for one tile of keys, and the steps of its softmax. The row fills kTile / kFloatLanes vectors,
// which compilers keep in registers where an instruction set has enough of them, and else on the stack. Operations are
// in reference.py's order, one rounding each.

#pragma once

#ifndef FAQUANT_UNIT
#include "generic/editor.h"
#endif

#include "generic/multiply_rows-inl.h"
#include "generic/numbers-inl.h"
#include "generic/vectors-inl.h"

constexpr int64_t kRowVectors = kTile / kFloatLanes;

#define FAQUANT_EACH_VECTOR FAQUANT_UNROLL for (int64_t i = 0; i < kRowVectors; ++i)

// In this many steps a loop over the vectors of a row prefetches.
constexpr int64_t kRowFetches = 8;

FAQUANT_INLINE void fetch_at(int64_t vector, PrefetchSteps& next) {
    if (vector % (kRowVectors / kRowFetches) == 0) {
        next.fetch();
    }
}

// GCC 12 ignores the attribute of an alias within a function template.
template <int64_t lanes>
struct FloatsOf {
    typedef float Type __attribute__((vector_size(lanes * sizeof(float))));
};

// The lanes of a vector, folded by halves into their sum or their maximum. In registers: sum_by_halves would pass
// through memory, and rows wait for this.
template <bool is_sum, int64_t lanes, typename Some>
FAQUANT_INLINE float fold_lanes(const Some& x) {
    if constexpr (lanes == 2) {
        return is_sum ? x[0] + x[1] : greater(x[0], x[1]);
    } else {
        typename FloatsOf<lanes / 2>::Type low, high;
        __builtin_memcpy(&low, &x, sizeof low);
        __builtin_memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof low, sizeof high);
        low = is_sum ? low + high : low > high ? low : high;
        return fold_lanes<is_sum, lanes / 2>(low);
    }
}

struct TileRow {
    Floats x[kRowVectors];

    // (sums - excess) · scale · k_scale + bias.
    FAQUANT_INLINE void score(const int32_t* sums, int32_t excess, float scale, const float* k_scale, float bias,
                              PrefetchSteps& next) {
        FAQUANT_EACH_VECTOR {
            fetch_at(i, next);
            // Unsigned, because products of keys that no row sees are left from other computations.
            Words some;
            __builtin_memcpy(&some, sums + i * kFloatLanes, sizeof some);
            some -= static_cast<uint32_t>(excess);
            const auto products = __builtin_convertvector(reinterpret_cast<Ints>(some), Floats);
            x[i] = products * scale * load_floats(k_scale + i * kFloatLanes) + bias;
        }
    }

    FAQUANT_INLINE void load(const float* from) {
        FAQUANT_EACH_VECTOR {
            x[i] = load_floats(from + i * kFloatLanes);
        }
    }

    FAQUANT_INLINE void write(float* to) const {
        FAQUANT_EACH_VECTOR {
            store(to + i * kFloatLanes, x[i]);
        }
    }

    // -infinity for the keys outside [low, high).
    FAQUANT_INLINE void mask(int64_t low, int64_t high) {
        if (low == 0 && high == kTile) {
            return;
        }
        Ints key;
        for (int64_t lane = 0; lane < kFloatLanes; ++lane) {
            key[lane] = static_cast<int32_t>(lane);
        }
        FAQUANT_EACH_VECTOR {
            const auto seen = (key >= static_cast<int32_t>(low)) & (key < static_cast<int32_t>(high));
            x[i] = seen ? x[i] : all_lanes(-kInfinity);
            key += static_cast<int32_t>(kFloatLanes);
        }
    }

    FAQUANT_INLINE float greatest() const { return fold<false>(); }

    FAQUANT_INLINE float sum() const { return fold<true>(); }

    // 2^(x - top), where top is the greatest of them.
    FAQUANT_INLINE void exponentials(float top, PrefetchSteps& next) {
        Floats least = all_lanes(-127.0f);
        // Compilers compare with a constant instead of taking the greater.
        __asm__("" : FAQUANT_REGISTER(least));
        FAQUANT_EACH_VECTOR {
            fetch_at(i, next);
            x[i] = exp2_of(greater(x[i] - top, least));
        }
    }

    FAQUANT_INLINE void multiply_by(const float* factors) {
        FAQUANT_EACH_VECTOR {
            x[i] *= load_floats(factors + i * kFloatLanes);
        }
    }

  private:
    // x[i] and x[i + kTile / 2] for all elements, and so on down to one.
    template <bool is_sum>
    FAQUANT_INLINE float fold() const {
        Floats y[kRowVectors];
        FAQUANT_EACH_VECTOR {
            y[i] = x[i];
        }
        FAQUANT_UNROLL
        for (int64_t half = kRowVectors / 2; half > 0; half /= 2) {
            FAQUANT_UNROLL
            for (int64_t i = 0; i < half; ++i) {
                y[i] = is_sum ? y[i] + y[i + half] : greater(y[i], y[i + half]);
            }
        }
        return fold_lanes<is_sum, kFloatLanes>(y[0]);
    }
};
