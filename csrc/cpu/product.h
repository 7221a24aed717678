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

// Blocks of input channels that are added one after the other, before their sum joins the others:
// long chains of additions err more, and many chains take time.
constexpr int64_t chain_of(int64_t in_blocks) { return in_blocks <= 4 ? 2 : 4; }

struct Product {
  const float* v;   // [in_blocks, tiles, 16]
  int64_t v_block;  // floats from one block of input channels to the next
  int64_t in_blocks;
  const float* u;  // [in_blocks * 16, kWide * 16]
  float* m;        // [kWide, tiles, 16]
  int64_t m_block;
  int64_t u_skip = 0;     // blocks of input channels of u that v does not have: before ...
  int64_t u_rest = 0;     // ... and behind those that it has
  int64_t chain = kSlab;  // see chain_of
};

// kTiles tiles x kWide blocks of output channels stay in registers while the input
// channels of a chain are added: all of them, or if kChains a part, whose sums join those before,
// in m if kAdd. m may be v. If kCall, `next` is called into the second cache meanwhile, one line
// for each input channel.
template <int kTiles, int kWide, bool kAdd, bool kChains, bool kCall>
PATHNET_INLINE void multiply(const Product& p, const float* next) {
  constexpr int kColumns = kWide * kRegisters;
  [[maybe_unused]] float joined[kTiles][kColumns][kLanes] __attribute__((aligned(64)));
  const float* u = p.u;
  int64_t block = 0;
  do {
    const bool joins = kAdd || (kChains && block > 0), in_m = kAdd && block == 0;
    const int64_t end = kChains ? std::min(block + p.chain, p.in_blocks) : p.in_blocks;
    Vector sum[kTiles][kColumns] = {};
    for (; block < end; ++block) {
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
          for (int k = 0; k < kColumns; ++k)
            sum[t][k] = multiply_add(v[t * kBlock + c], row[k], sum[t][k]);
      }
    }
    const bool last = !kChains || block == p.in_blocks;
#pragma GCC unroll 16
    for (int t = 0; t < kTiles; ++t)
#pragma GCC unroll 16
      for (int k = 0; k < kColumns; ++k) {
        float* const m = p.m + k / kRegisters * p.m_block + t * kBlock + k % kRegisters * kLanes;
        if (joins) sum[t][k] += load(in_m ? m : joined[t][k]);
        store(last ? m : joined[t][k], sum[t][k]);
      }
  } while (kChains && block < p.in_blocks);
}

// All tiles for the input channels of one slab. The first kWide rounds call for the slab that
// follows in memory.
template <int kWide, bool kAdd, bool kChains>
void multiply_tiles(const Product& product, int64_t tiles) {
  constexpr int kTiles = kTilesOf[kWide];
  Product p = product;                                   // in registers, which no store can change
  const int64_t floats = p.in_blocks * kBlock * kBlock;  // that a round calls
  const float* next = p.u + kWide * floats;
  for (int64_t t = 0; t < tiles; t += kTiles, p.v += kTiles * kBlock, p.m += kTiles * kBlock)
    if (t < kWide * kTiles)
      multiply<kTiles, kWide, kAdd, kChains, true>(p, next + t / kTiles * floats);
    else
      multiply<kTiles, kWide, kAdd, kChains, false>(p, nullptr);
}

// A slab; its products are added to m unless it is the first.
template <int kWide>
PATHNET_INLINE void multiply_slab(const Product& p, int64_t tiles, bool first) {
  if (!first)
    multiply_tiles<kWide, true, true>(p, tiles);
  else if (p.in_blocks > p.chain)
    multiply_tiles<kWide, false, true>(p, tiles);
  else
    multiply_tiles<kWide, false, false>(p, tiles);
}

// All tiles for kWide blocks of output channels; `tiles` is a multiple of kTilesOf[kWide].
template <int kWide>
PATHNET_INLINE void multiply_slabs(const Product& p, int64_t tiles) {
  if (p.in_blocks <= kSlab) return multiply_slab<kWide>(p, tiles, true);
  Product slab = p;
  for (int64_t block = 0; block < p.in_blocks; block += kSlab) {
    slab.in_blocks = std::min(kSlab, p.in_blocks - block);
    multiply_slab<kWide>(slab, tiles, block == 0);
    slab.v += kSlab * p.v_block, slab.u += kSlab * kBlock * kWide * kBlock;
  }
}

// One position: [in_blocks, tiles, 16] x u -> [out_blocks, tiles, 16]. u holds the output channels
// in groups of kWidest blocks. m may be v where one group holds all of them.
PATHNET_INLINE void multiply_position(Product p, int64_t tiles, int64_t out_blocks) {
  const int64_t u_blocks = p.u_skip + p.in_blocks + p.u_rest;
  p.chain = chain_of(p.in_blocks);
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
