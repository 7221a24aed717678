// The matrix products of a convolution: for every tile t and output channel k
//     m[t][k] = sum over c of v[t][c] u[c][k],
// with tiles and channels in blocks of 16 floats.
#pragma once
#include <algorithm>

#include "simd.h"

namespace pathnet {
namespace {

// Blocks of output channels that one product computes at once, and the tiles that then fill the
// registers with sums.
#if PATHNET_LANES == 16
constexpr int kWidest = 4;
constexpr int kTilesOf[kWidest + 1] = {0, 16, 8, 4, 4};
#elif PATHNET_LANES == 8
constexpr int kWidest = 1;
constexpr int kTilesOf[kWidest + 1] = {0, 6};
#else
constexpr int kWidest = 1;
constexpr int kTilesOf[kWidest + 1] = {0, 2};
#endif

// Blocks of input channels whose weights stay in the first cache while all tiles meet them.
constexpr int64_t kSlab = 8;

struct Product {
  const float* v;   // [in_blocks, tiles, 16]
  int64_t v_block;  // floats from one block of input channels to the next
  int64_t in_blocks;
  const float* u;  // [in_blocks * 16, kWide * 16]
  float* m;        // [kWide, tiles, 16]
  int64_t m_block;
  int64_t u_skip = 0;  // blocks of input channels of u that v does not have: before ...
  int64_t u_rest = 0;  // ... and behind those that it has
};

// kTiles tiles x kWide blocks of output channels stay in registers while the input channels are
// added, to m if kAdd; m may be v. If kCall, `next` is called into the second cache meanwhile, one
// line for each input channel.
template <int kTiles, int kWide, bool kAdd, bool kCall>
PATHNET_INLINE void multiply(const Product& p, const float* next) {
  constexpr int kColumns = kWide * kRegisters;
  Vector sum[kTiles][kColumns];
#pragma GCC unroll 16
  for (int t = 0; t < kTiles; ++t)
#pragma GCC unroll 16
    for (int k = 0; k < kColumns; ++k)
      sum[t][k] =
          kAdd ? load(p.m + k / kRegisters * p.m_block + t * kBlock + k % kRegisters * kLanes)
               : Vector{};
  const float* u = p.u;
  for (int64_t block = 0; block < p.in_blocks; ++block) {
    const float* v = p.v + block * p.v_block;
#pragma GCC unroll 4
    for (int c = 0; c < kBlock; ++c, u += kWide * kBlock) {
      if constexpr (kCall) {
        __builtin_prefetch(next, 0, 2);
        next += kBlock;
      }
      Vector row[kColumns];
#pragma GCC unroll 16
      for (int k = 0; k < kColumns; ++k) row[k] = load(u + k * kLanes);
#pragma GCC unroll 16
      for (int t = 0; t < kTiles; ++t)
#pragma GCC unroll 16
        for (int k = 0; k < kColumns; ++k) sum[t][k] += row[k] * v[t * kBlock + c];
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kTiles; ++t)
#pragma GCC unroll 16
    for (int k = 0; k < kColumns; ++k)
      store(p.m + k / kRegisters * p.m_block + t * kBlock + k % kRegisters * kLanes, sum[t][k]);
}

// All tiles for the input channels of one slab. The first kWide rounds call for the slab that
// follows in memory.
template <int kWide, bool kAdd>
void multiply_tiles(Product p, int64_t tiles) {
  constexpr int kTiles = kTilesOf[kWide];
  const int64_t floats = p.in_blocks * kBlock * kBlock;  // that a round calls
  const float* next = p.u + kWide * floats;
  for (int64_t t = 0; t < tiles; t += kTiles, p.v += kTiles * kBlock, p.m += kTiles * kBlock) {
    if (t < kWide * kTiles)
      multiply<kTiles, kWide, kAdd, true>(p, next + t / kTiles * floats);
    else
      multiply<kTiles, kWide, kAdd, false>(p, nullptr);
  }
}

// All tiles for kWide blocks of output channels; `tiles` is a multiple of kTilesOf[kWide].
template <int kWide>
void multiply_slabs(Product p, int64_t tiles) {
  const int64_t blocks = p.in_blocks;
  p.in_blocks = std::min(kSlab, blocks);
  multiply_tiles<kWide, false>(p, tiles);
  for (int64_t block = kSlab; block < blocks; block += kSlab) {
    p.v += kSlab * p.v_block, p.u += kSlab * kBlock * kWide * kBlock;
    p.in_blocks = std::min(kSlab, blocks - block);
    multiply_tiles<kWide, true>(p, tiles);
  }
}

// One position: [in_blocks, tiles, 16] x u -> [out_blocks, tiles, 16]. u holds the output channels
// in groups of kWidest blocks. m may be v where one group holds all of them.
PATHNET_INLINE void multiply_position(Product p, int64_t tiles, int64_t out_blocks) {
  const int64_t u_blocks = p.u_skip + p.in_blocks + p.u_rest;
  for (int64_t block = 0; block < out_blocks; block += kWidest) {
    const int wide = static_cast<int>(std::min<int64_t>(kWidest, out_blocks - block));
    const float* group = p.u;
    p.u += p.u_skip * kBlock * wide * kBlock;
    if (wide == kWidest) multiply_slabs<kWidest>(p, tiles);
#if PATHNET_LANES == 16
    if (wide == 1) multiply_slabs<1>(p, tiles);
    if (wide == 2) multiply_slabs<2>(p, tiles);
    if (wide == 3) multiply_slabs<3>(p, tiles);
#endif
    p.u = group + u_blocks * kBlock * wide * kBlock;
    p.m += wide * p.m_block;
  }
}

// The multiple of tiles that every product of these output channels can do.
inline int64_t tile_multiple(int64_t out_blocks) {
  const int64_t rest = out_blocks % kWidest;
  return rest == 0 ? kTilesOf[kWidest]
                   : std::max(kTilesOf[rest], kTilesOf[out_blocks < kWidest ? rest : kWidest]);
}

}  // namespace
}  // namespace pathnet
