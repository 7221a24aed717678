// The direct convolution, written once for every instruction set. A file that includes this has
// first chosen its instructions (#pragma GCC target) and defined
//   PATHNET_KERNELS      name of the table that it defines
//   PATHNET_INSTRUCTIONS their name
//   PATHNET_LANES        floats in one register
//   PATHNET_PIXELS       output pixels in registers with 16 channels
//   PATHNET_WIDE_PIXELS  the same with 32 channels, 0 where there are too few registers for that
// Everything stands in an anonymous namespace: code for one instruction set must never be linked
// into another.
//
// A tile of P pixels x V registers of output channels stays in registers while all taps and input
// channels are added. In the padded channels-last image the taps of one kernel row are contiguous,
// so a convolution is kernel-many runs of a matrix product whose rows overlap.
#include <utility>

#include "conv.h"

namespace pathnet {
namespace {

constexpr int kLanes = PATHNET_LANES;
constexpr int kRegisters = kBlock / kLanes;  // that hold one block of channels

using Vector = float __attribute__((vector_size(kLanes * sizeof(float))));
using LooseVector =
    float __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

struct Tile {
  const float* in;   // first tap of the first pixel
  int64_t in_row;    // floats from one kernel row to the next
  int64_t in_pixel;  // floats from one output pixel's first tap to the next one's
  int64_t kernel_rows;
  int64_t run;            // taps of one kernel row times input channels
  const float* weights;   // [kernel_rows, run, kBlock], one such array per block of channels
  int64_t weights_block;  // floats from one block's weights to the next
  const float* bias;
  float* out;  // first pixel
  int64_t out_pixel;
};

template <int V, int P>
void convolve_tile(const Tile& t, const Epilogue& epilogue) {
  Vector sum[P][V];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sum[p][v] = *(const LooseVector*)(t.bias + v * kLanes);

  const float* weights = t.weights;
  for (int64_t i = 0; i < t.kernel_rows; ++i) {
    const float* in = t.in + i * t.in_row;
    for (int64_t k = 0; k < t.run; ++k, ++in, weights += kBlock) {
      Vector w[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v)
        w[v] = *(const LooseVector*)(weights + v / kRegisters * t.weights_block +
                                     v % kRegisters * kLanes);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sum[p][v] += in[p * t.in_pixel] * w[v];
    }
  }

#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      auto* out = (LooseVector*)(t.out + p * t.out_pixel + v * kLanes);
      Vector value = sum[p][v];
      if (epilogue.add) value = *out + epilogue.scale * value;
      if (epilogue.relu) value = value < 0.0f ? Vector{} : value;  // NaN stays NaN
      *out = value;
    }
}

using TileFunction = void (*)(const Tile&, const Epilogue&);

// tiles[p - 1] computes p pixels
template <int V, int... P>
constexpr auto tile_functions(std::integer_sequence<int, P...>) {
  struct Table {
    TileFunction of[sizeof...(P)];
  };
  return Table{{convolve_tile<V, P + 1>...}};
}

// The output channels of `blocks` blocks from `block` on, for all pixels; rows are split into tiles
// of even width.
template <int V, int kPixels>
void convolve_blocks(const Conv& conv, int64_t block, const Image& in, const Image& out,
                     const Epilogue& epilogue) {
  constexpr auto tiles = tile_functions<V>(std::make_integer_sequence<int, kPixels>());
  const int64_t halo = conv.kernel / 2;
  const int64_t parts = (out.width + kPixels - 1) / kPixels;
  Tile tile;
  tile.in_row = in.row_stride();
  tile.in_pixel = conv.stride * in.channels;
  tile.kernel_rows = conv.kernel;
  tile.run = conv.kernel * in.channels;
  tile.weights_block = conv.taps() * kBlock;
  tile.weights = conv.weights + block * tile.weights_block;
  tile.bias = conv.bias + block * kBlock;
  tile.out_pixel = out.channels;
  for (int64_t i = 0; i < out.height; ++i) {
    const float* in_row = in.row(i * conv.stride - halo) - halo * in.channels;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = out.width * part / parts, end = out.width * (part + 1) / parts;
      tile.in = in_row + begin * tile.in_pixel;
      tile.out = out.row(i) + begin * out.channels + block * kBlock;
      tiles.of[end - begin - 1](tile, epilogue);
    }
  }
}

void convolve(const Conv& conv, const Image& in, const Image& out, const Epilogue& epilogue) {
  const int64_t blocks = conv.out_channels / kBlock;
  int64_t block = 0;
#if PATHNET_WIDE_PIXELS
  for (; block + 2 <= blocks; block += 2)
    convolve_blocks<2 * kRegisters, PATHNET_WIDE_PIXELS>(conv, block, in, out, epilogue);
#endif
  for (; block < blocks; ++block)
    convolve_blocks<kRegisters, PATHNET_PIXELS>(conv, block, in, out, epilogue);
}

void affine_relu(const Image& in, const float* scale, const float* shift, const Image& out) {
  for (int64_t i = 0; i < in.height; ++i) {
    for (int64_t j = 0; j < in.width; ++j) {
      const float* from = in.row(i) + j * in.channels;
      float* to = out.row(i) + j * in.channels;
      for (int64_t c = 0; c < in.channels; c += kLanes) {
        Vector value = *(const LooseVector*)(from + c) * *(const LooseVector*)(scale + c) +
                       *(const LooseVector*)(shift + c);
        *(LooseVector*)(to + c) = value < 0.0f ? Vector{} : value;
      }
    }
  }
}

}  // namespace

extern const Kernels PATHNET_KERNELS = {PATHNET_INSTRUCTIONS, convolve, affine_relu};

}  // namespace pathnet
