// The gradient of a 3x3 convolution's weights in the Winograd domain, the adjoint of the forward:
//     dU[p] = sum over tiles of V[p]^T E[p],  V = B^T d B of the input,  E = A dy A^T,
// from which G^T dU G is the gradient of the weights.
#pragma once
#include "ahead.h"
#include "convolve.h"
#include "weights.h"

namespace pathnet {
namespace {

// Channels of the input times blocks of output channels whose sums fill the registers.
#if PATHNET_LANES == 16
constexpr int kWidestGradient = 4;
constexpr int kRowsOf[kWidestGradient + 1] = {0, 16, 8, 4, 4};
#else
constexpr int kWidestGradient = 1;
constexpr int kRowsOf[kWidestGradient + 1] = {0, kLanes == 8 ? 4 : 2};
#endif

// A dy A^T of `tiles` tiles in a row; `gradient` is the upper left pixel of the first one.
inline void transform_gradient(const float* gradient, int64_t row_stride, int64_t tiles, float* out,
                               int64_t position_stride) {
  for (int64_t t = 0; t < tiles; ++t, gradient += kTile * kBlock, out += kBlock) {
    Vector rows[6][kTile];
#pragma GCC unroll 4
    for (int j = 0; j < kTile; ++j) {
      Vector y[kTile], m[6];
      for (int i = 0; i < kTile; ++i) y[i] = load(gradient + i * row_stride + j * kBlock);
      gradient_rows(y, m);
      for (int i = 0; i < 6; ++i) rows[i][j] = m[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) {
      Vector m[6];
      gradient_rows(rows[i], m);
      for (int j = 0; j < 6; ++j) store(out + (i * 6 + j) * position_stride, m[j]);
    }
  }
}

inline void gather_gradient(const Image* gradient, int64_t first, int64_t count,
                            const Panel& panel) {
  for_segments(gradient[0], first, count, [&](const Segment& s) {
    const Image& image = gradient[s.image];
    for (int64_t b = 0; b < image.blocks; ++b)
      for (int r = 0; r < kRegisters; ++r)
        transform_gradient(image.at(b, s.row * kTile, s.column * kTile) + r * kLanes,
                           image.row_stride(), s.tiles,
                           panel.data + b * panel.block_stride + s.at * kBlock + r * kLanes,
                           panel.position_stride);
  });
}

struct OuterProduct {
  const float* v;  // [tiles, 16], from some channel on
  const float* e;  // [kWide, tiles, 16]
  int64_t e_block;
  float* u;  // [kRows, out channels]
  int64_t u_row;
  int64_t tiles;
  bool fresh;  // whether u is set, not added to
};

template <int kRows, int kWide>
PATHNET_INLINE void add_outer_products(const OuterProduct& p) {
  constexpr int kColumns = kWide * kRegisters;
  Vector sum[kRows][kColumns] = {};
#pragma GCC unroll 2
  for (int64_t t = 0; t < p.tiles; ++t) {
    Vector e[kColumns];
#pragma GCC unroll 16
    for (int k = 0; k < kColumns; ++k)
      e[k] = load(p.e + k / kRegisters * p.e_block + t * kBlock + k % kRegisters * kLanes);
#pragma GCC unroll 16
    for (int c = 0; c < kRows; ++c)
#pragma GCC unroll 16
      for (int k = 0; k < kColumns; ++k)
        sum[c][k] = multiply_add(p.v[t * kBlock + c], e[k], sum[c][k]);
  }
#pragma GCC unroll 16
  for (int c = 0; c < kRows; ++c)
#pragma GCC unroll 16
    for (int k = 0; k < kColumns; ++k) {
      float* u = p.u + c * p.u_row + k * kLanes;
      store(u, p.fresh ? sum[c][k] : load(u) + sum[c][k]);
    }
}

template <int kWide>
void add_group(const Panel& v, const OuterProduct& group, int64_t in_blocks) {
  constexpr int kRows = kRowsOf[kWide];
  OuterProduct p = group;
  for (int64_t block = 0; block < in_blocks; ++block)
    for (int c = 0; c < kBlock; c += kRows) {
      p.v = group.v + block * v.block_stride + c;
      add_outer_products<kRows, kWide>(p);
      p.u += kRows * p.u_row;
    }
}

// One position for the blocks of input channels within reach.
inline void add_position(const Panel& v, const Panel& e, int position, const Reach& reach,
                         int64_t in_blocks, int64_t out_blocks, int64_t tiles, float* u,
                         bool fresh) {
  OuterProduct p{v.data + position * v.position_stride + reach.first * v.block_stride,
                 e.data + position * e.position_stride,
                 e.block_stride,
                 u + position * position_floats(in_blocks, out_blocks) +
                     reach.first * kBlock * out_blocks * kBlock,
                 out_blocks * kBlock,
                 tiles,
                 fresh};
  for (int64_t block = 0; block < out_blocks; block += kWidestGradient) {
    const int wide = static_cast<int>(std::min<int64_t>(kWidestGradient, out_blocks - block));
    if (wide == kWidestGradient) add_group<kWidestGradient>(v, p, reach.blocks);
#if PATHNET_LANES == 16
    if (wide == 1) add_group<1>(v, p, reach.blocks);
    if (wide == 2) add_group<2>(v, p, reach.blocks);
    if (wide == 3) add_group<3>(v, p, reach.blocks);
#endif
    p.e += wide * e.block_stride;
    p.u += wide * kBlock;
  }
}

// Tiles of one panel: their products are added to dU in registers, so that dU is read and written
// once a panel.
constexpr int64_t kGradientTiles = 32;

inline int64_t weight_gradient_workspace_floats(int64_t in_blocks, int64_t out_blocks) {
  return kPositions * ((in_blocks + out_blocks) * kGradientTiles * kBlock + 2 * kBlock);
}

// Adds the gradient of the weights that `images` images give to dU [positions, in, out channels],
// its positions position_floats apart, or sets it. `phases`: as for convolve; what no tap of a
// phase needs of dU is left as it is.
template <typename Prefetch>
void add_weight_gradient(const Image* in, const Image* gradient, int64_t images, float* workspace,
                         float* u, bool fresh, bool phases, Prefetch& ahead) {
  const Image& shape = gradient[0];
  const int64_t in_blocks = in[0].blocks;
  const int64_t tiles = images * divide_up(shape.height, kTile) * divide_up(shape.width, kTile);
  ahead.spread_over(divide_up(tiles, kGradientTiles) * kPositions);
  for (int64_t first = 0; first < tiles; first += kGradientTiles) {
    const int64_t count = std::min(kGradientTiles, tiles - first);
    const Panel v(workspace, in_blocks, count);
    const Panel e(workspace + kPositions * v.position_stride, shape.blocks, count);
    gather(in, first, count, v);
    gather_gradient(gradient, first, count, e);
    for (int p = 0; p < kPositions; ++p) {
      ahead.step();
      add_position(v, e, p, reach_of(p, in_blocks, phases), in_blocks, shape.blocks, count, u,
                   fresh && first == 0);
    }
  }
}

// Turns dU into the gradient of the weights, [9, in channels, out channels].
inline void finish_weight_gradient(const float* u, int64_t in_channels, int64_t out_channels,
                                   float* gradient) {
  const int64_t floats = in_channels * out_channels;
  const int64_t position_stride = position_floats(in_channels / kBlock, out_channels / kBlock);
  for (int64_t i = 0; i < floats; i += kLanes) {
    Vector g[9];
    transform_weight_gradient(u + i, position_stride, g);
    for (int tap = 0; tap < 9; ++tap) store(gradient + tap * floats + i, g[tap]);
  }
}

}  // namespace
}  // namespace pathnet
