// The matrix products of a convolution (product.h) with operands rounded to bf16 and sums in
// float32, by AMX or by vdpbf16ps. An instruction of AMX multiplies 16 tiles x 32 input channels x
// 16 output channels, eight times as fast as float32 FMA. vdpbf16ps adds two channels at a time: on
// Zen 4 twice as fast as float32 FMA, on Sapphire Rapids half as fast.
#pragma once
#include <algorithm>
#include <cstring>
#include <utility>

#include "amx.h"
#include "simd.h"

namespace pathnet {
namespace {

using Bf16 = uint16_t;

constexpr int kPair = 2 * kBlock;     // channels of two blocks
constexpr int kAmxTiles = 16;         // tiles of one product
constexpr int kAmxWidest = 4;         // blocks of output channels that it computes at once
constexpr int64_t kAheadBf16 = 4096;  // numbers between a prefetch and its use

// Input channels stand in pairs of blocks; an odd last block stands alone. u is made of squares,
// one for each of them and 16 output channels: rows of two input channels side by side,
// [16 or 8][16][2].
struct ProductBf16 {
  const Bf16* v;       // [pairs, tiles, 32]
  const Bf16* v_last;  // [tiles, 16]: the odd block
  int64_t v_pair;      // numbers from one pair to the next
  int64_t in_blocks;
  const Bf16* u;  // [pairs, kWide, square]
  float* m;       // [kWide, tiles, 16]
  int64_t m_block;
};

template <int kWide>
PATHNET_INLINE void prefetch_squares(const Bf16* u, int64_t square) {
  for (int64_t i = 0; i < kWide * square; i += kPair) __builtin_prefetch(u + kAheadBf16 + i);
}

// Registers 0 to 3 hold sums, 4 tiles and 5 a square; 6 and 7 the same of an odd block.
struct Amx {
  class Session : AmxSession {
   public:
    Session() : AmxSession(kShapes) {}
  };

  template <int kWide>
  PATHNET_INLINE static void multiply(const ProductBf16& p) {
    multiply(p, std::make_integer_sequence<int, kWide>());
  }

 private:
  alignas(64) static constexpr AmxShapes kShapes = {.row_bytes = {64, 64, 64, 64, 64, 64, 32, 64},
                                                    .rows = {16, 16, 16, 16, 16, 16, 16, 8}};

  template <int... kColumns>
  PATHNET_INLINE static void multiply(const ProductBf16& p,
                                      std::integer_sequence<int, kColumns...> columns) {
    constexpr int64_t kSquare = kPair * kBlock;
    const Bf16 *v = p.v, *u = p.u;
    (tile_zero<kColumns>(), ...);
    for (int64_t pair = 0; pair < p.in_blocks / 2; ++pair) {
      add<4, 5>(v, kPair, u, kSquare, columns);
      v += p.v_pair, u += columns.size() * kSquare;
    }
    if (p.in_blocks % 2 != 0) add<6, 7>(p.v_last, kBlock, u, kSquare / 2, columns);
    (tile_store<kColumns>(p.m + kColumns * p.m_block, kBlock * sizeof(float)), ...);
  }

  template <int kV, int kU, int... kColumns>
  PATHNET_INLINE static void add(const Bf16* v, int64_t v_row, const Bf16* u, int64_t square,
                                 std::integer_sequence<int, kColumns...>) {
    prefetch_squares<sizeof...(kColumns)>(u, square);
    tile_load<kV>(v, v_row * sizeof(Bf16));
    ((tile_load<kU>(u + kColumns * square, kPair * sizeof(Bf16)),
      tile_multiply_add<kColumns, kV, kU>()),
     ...);
  }
};

struct Avx512Bf16 {
  struct Session {};

  template <int kWide>
  PATHNET_INLINE static void multiply(const ProductBf16& p) {
    constexpr int kTiles = kAmxTiles / (kWide == 3 ? 4 : kWide);  // their sums fill the registers
    for (int first = 0; first < kAmxTiles; first += kTiles) multiply<kTiles, kWide>(p, first);
  }

 private:
  template <int kTiles, int kWide>
  PATHNET_INLINE static void multiply(const ProductBf16& p, int64_t first) {
    constexpr int64_t kSquare = kPair * kBlock;
    const Bf16 *v = p.v + first * kPair, *u = p.u;
    __m512 sum[kTiles][kWide] = {};
    for (int64_t pair = 0; pair < p.in_blocks / 2; ++pair) {
      add<kTiles, kWide>(v, kPair, u, kSquare, sum);
      v += p.v_pair, u += kWide * kSquare;
    }
    if (p.in_blocks % 2 != 0)
      add<kTiles, kWide>(p.v_last + first * kBlock, kBlock, u, kSquare / 2, sum);
#pragma GCC unroll 16
    for (int t = 0; t < kTiles; ++t)
#pragma GCC unroll 4
      for (int k = 0; k < kWide; ++k)
        _mm512_store_ps(p.m + k * p.m_block + (first + t) * kBlock, sum[t][k]);
  }

  template <int kTiles, int kWide>
  PATHNET_INLINE static void add(const Bf16* v, int64_t v_row, const Bf16* u, int64_t square,
                                 __m512 sum[kTiles][kWide]) {
    prefetch_squares<kWide>(u, square);
    for (int64_t i = 0; i < square; i += kPair, v += 2) {
      __m512bh row[kWide];
#pragma GCC unroll 4
      for (int k = 0; k < kWide; ++k) row[k] = (__m512bh)_mm512_load_si512(u + k * square + i);
#pragma GCC unroll 16
      for (int t = 0; t < kTiles; ++t) {
        int two;
        std::memcpy(&two, v + t * v_row, sizeof two);
#pragma GCC unroll 4
        for (int k = 0; k < kWide; ++k)
          sum[t][k] = _mm512_dpbf16_ps(sum[t][k], row[k], (__m512bh)_mm512_set1_epi32(two));
      }
    }
  }
};

template <typename Unit, int kWide>
void multiply_tiles_bf16(ProductBf16 p, int64_t tiles) {
  for (int64_t t = 0; t < tiles; t += kAmxTiles) {
    Unit::template multiply<kWide>(p);
    p.v += kAmxTiles * kPair, p.v_last += kAmxTiles * kBlock, p.m += kAmxTiles * kBlock;
  }
}

// One position: `tiles`, a multiple of kAmxTiles, and all output channels, in groups of kAmxWidest
// blocks in u.
template <typename Unit>
void multiply_position_bf16(ProductBf16 p, int64_t tiles, int64_t out_blocks) {
  for (int64_t block = 0; block < out_blocks; block += kAmxWidest) {
    const int wide = static_cast<int>(std::min<int64_t>(kAmxWidest, out_blocks - block));
    if (wide == 1) multiply_tiles_bf16<Unit, 1>(p, tiles);
    if (wide == 2) multiply_tiles_bf16<Unit, 2>(p, tiles);
    if (wide == 3) multiply_tiles_bf16<Unit, 3>(p, tiles);
    if (wide == 4) multiply_tiles_bf16<Unit, 4>(p, tiles);
    p.u += p.in_blocks * kBlock * wide * kBlock;
    p.m += wide * p.m_block;
  }
}

}  // namespace
}  // namespace pathnet
