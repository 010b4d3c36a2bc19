#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace faquant {

// AMX-INT8's tiles in plain C++, as Intel's Software Developer's Manual defines the instructions. What a CPU would
// refuse with an exception ends the program. Not inlined, because the stand-in has hundreds of calls.
class AmxMachine {
  public:
    static constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

    int64_t products = 0;  // of tiles, so far

    AmxMachine() = default;

    // Whether tiles are configured, which costs time at each switch of threads.
    bool in_use() const { return in_use_; }

    // ldtilecfg, of 64 bytes
    __attribute__((noinline)) void configure(const void* operand) {
        uint8_t bytes[64];
        std::memcpy(bytes, operand, sizeof bytes);
        *this = AmxMachine(products);
        if (bytes[0] == 0) {
            return;
        }
        require(bytes[0] == 1, "ldtilecfg: another palette than 1");
        require(bytes[1] == 0, "ldtilecfg: a start row, which this machine does not emulate");
        for (int i = 2; i < 16; ++i) {
            require(bytes[i] == 0, "ldtilecfg: a reserved byte is not zero");
        }
        for (int tile = 0; tile < 16; ++tile) {
            const int row_bytes = bytes[16 + 2 * tile] + 256 * bytes[17 + 2 * tile], rows = bytes[48 + tile];
            require(tile < kTiles || (row_bytes == 0 && rows == 0), "ldtilecfg: more than 8 tiles");
            require(row_bytes <= kRowBytes && rows <= kRows, "ldtilecfg: a tile is too large");
            require((row_bytes == 0) == (rows == 0), "ldtilecfg: a tile has only one of rows and columns");
            if (tile < kTiles) {
                row_bytes_[tile] = row_bytes;
                rows_[tile] = rows;
            }
        }
        in_use_ = true;
    }

    // tilerelease
    void release() { *this = AmxMachine(products); }

    // tilezero
    __attribute__((noinline)) void zero(int tile) {
        check(tile, "tilezero");
        std::memset(tiles_[tile], 0, sizeof tiles_[tile]);
    }

    // tileloadd
    __attribute__((noinline)) void load(int tile, const void* from, int64_t stride) {
        check(tile, "tileloadd");
        std::memset(tiles_[tile], 0, sizeof tiles_[tile]);
        for (int r = 0; r < rows_[tile]; ++r) {
            std::memcpy(tiles_[tile][r], static_cast<const char*>(from) + r * stride,
                        static_cast<size_t>(row_bytes_[tile]));
        }
    }

    // tilestored
    __attribute__((noinline)) void store(int tile, void* to, int64_t stride) const {
        check(tile, "tilestored");
        for (int r = 0; r < rows_[tile]; ++r) {
            std::memcpy(static_cast<char*>(to) + r * stride, tiles_[tile][r], static_cast<size_t>(row_bytes_[tile]));
        }
    }

    // tdpbusd, tdpbsud, tdpbssd and tdpbuud: by A and B, the types of the bytes of a and b
    template <typename A, typename B>
    __attribute__((noinline)) void add_products(int sums, int a, int b) {
        for (const int tile : {sums, a, b}) {
            check(tile, "a product");
        }
        require(sums != a && sums != b && a != b, "a product: the same tile twice");
        require(rows_[sums] == rows_[a] && row_bytes_[sums] == row_bytes_[b] && row_bytes_[a] == 4 * rows_[b] &&
                    row_bytes_[sums] % 4 == 0,
                "a product: shapes that do not fit");
        for (int m = 0; m < rows_[sums]; ++m) {
            // Wrapping, without undefined behaviour.
            uint32_t row[kRowBytes / 4];
            std::memcpy(row, tiles_[sums][m], sizeof row);
            for (int k = 0; k < row_bytes_[a]; ++k) {
                const int32_t factor = static_cast<A>(tiles_[a][m][k]);
                for (int n = 0; n < row_bytes_[sums] / 4; ++n) {
                    const int32_t other = static_cast<B>(tiles_[b][k / 4][4 * n + k % 4]);
                    row[n] += static_cast<uint32_t>(factor * other);
                }
            }
            std::memcpy(tiles_[sums][m], row, static_cast<size_t>(row_bytes_[sums]));
        }
        ++products;
    }

    [[noreturn]] static void fail(const char* what) {
        std::fprintf(stderr, "The tiles of AMX: %s.\n", what);
        std::abort();
    }

  private:
    explicit AmxMachine(int64_t so_far) : products(so_far) {}

    static void require(bool right, const char* what) {
        if (!right) {
            fail(what);
        }
    }

    void check(int tile, const char* instruction) const {
        if (!in_use_ || rows_[tile] == 0) {
            std::fprintf(stderr, "Tile %d is not configured. ", tile);
            fail(instruction);
        }
    }

    bool in_use_ = false;
    int rows_[kTiles] = {}, row_bytes_[kTiles] = {};
    uint8_t tiles_[kTiles][kRows][kRowBytes] = {};
};

inline thread_local AmxMachine amx_machine;

}  // namespace faquant
