// A 3x3 convolution as in convolve.h, its products with operands in bf16 (product_bf16.h).
#pragma once
#include "convolve.h"
#include "product_bf16.h"
#include "weights_bf16.h"

namespace pathnet {
namespace {

// The transformed input of a panel in bf16: [positions][pairs, tiles, 32], an odd last block
// [tiles, 16].
struct PanelBf16 {
  Bf16* data;
  int64_t blocks, tiles, position_stride;
  PanelBf16(float* data, int64_t blocks, int64_t tiles)
      : data(reinterpret_cast<Bf16*>(data)),
        blocks(blocks),
        tiles(tiles),
        position_stride(blocks * tiles * kBlock + kPair) {}

  Bf16* pair(int position, int64_t pair) const {
    return data + position * position_stride + pair * tiles * kPair;
  }
  auto writer(int64_t block, int64_t first, int) const {
    const int64_t row = block == blocks - 1 && block % 2 == 0 ? kBlock : kPair;
    return [to = pair(0, block / 2) + block % 2 * kBlock + first * row, stride = position_stride,
            row](int position, int64_t tile, Vector v) __attribute__((always_inline)) {
      *reinterpret_cast<Bf16Vector*>(to + position * stride + tile * row) = to_bf16(v);
    };
  }
};

// Tiles of one panel: in the second cache, since the products are so fast that reading the weights
// takes as long.
inline int64_t panel_tiles_bf16(int64_t in_blocks, int64_t out_blocks) {
  constexpr int64_t kBlocks = 128;  // of channels times tiles: 288 KiB of products
  const int64_t near = kBlocks / std::max(in_blocks, out_blocks);
  const bool cached = in_blocks * out_blocks <= kCachedWeights;
  return round_up(cached ? std::min(near, kSharingTiles) : kSharingTiles, kAmxTiles);
}

inline int64_t panel_floats_bf16(int64_t in_blocks, int64_t tiles) {
  return kPositions * PanelBf16(nullptr, in_blocks, tiles).position_stride / 2;
}

template <typename Unit>
void multiply_panel_bf16(const PanelBf16& v, const Panel& m, int64_t out_blocks, const Bf16* u,
                         bool phases) {
  for (int p = 0; p < kPositions; ++p, u += position_numbers(v.blocks, out_blocks)) {
    float* products = m.data + p * m.position_stride;
    if (phases && reach_of_phases(p, v.blocks).blocks == 0)
      std::memset(products, 0, out_blocks * m.block_stride * sizeof(float));
    else
      multiply_position_bf16<Unit>({v.pair(p, 0), v.pair(p, v.blocks / 2), v.tiles * kPair,
                                    v.blocks, u, products, m.block_stride},
                                   v.tiles, out_blocks);
  }
}

// 3x3 convolutions with products in bf16 by a unit of the processor: Amx or Avx512Bf16.
template <typename Unit>
struct Bf16Products {
  static constexpr int64_t kFew = 0;

  static int64_t workspace_floats(int64_t in_blocks, int64_t out_blocks) {
    const int64_t tiles = panel_tiles_bf16(in_blocks, out_blocks);
    return panel_floats_bf16(in_blocks, tiles) +
           kPositions * Panel(nullptr, out_blocks, tiles).position_stride;
  }

  static void pack(const WeightView& weight, const Taps& taps, const Placement& place,
                   int64_t block, float* packed) {
    transform_weight_block_bf16(weight, taps, place, block, reinterpret_cast<Bf16*>(packed));
  }

  template <typename Epilogue>
  static void convolve(const Image* in, const Image& out, int64_t images, const float* weights,
                       float* workspace, const Epilogue& epilogue, bool phases) {
    const int64_t tiles = images * divide_up(out.height, kTile) * divide_up(out.width, kTile);
    const int64_t in_blocks = in[0].blocks, most = panel_tiles_bf16(in_blocks, out.blocks);
    const auto* u = reinterpret_cast<const Bf16*>(weights);
    [[maybe_unused]] const typename Unit::Session session;
    for (int64_t first = 0; first < tiles; first += most) {
      const int64_t count = std::min(most, tiles - first), padded = round_up(count, kAmxTiles);
      const PanelBf16 v(workspace, in_blocks, padded);
      const Panel m(workspace + panel_floats_bf16(in_blocks, padded), out.blocks, padded);
      gather(in, first, count, v);
      multiply_panel_bf16<Unit>(v, m, out.blocks, u, phases);
      scatter(m, out, first, count, epilogue);
    }
  }
};

}  // namespace
}  // namespace pathnet
