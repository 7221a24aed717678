// A 3x3 convolution of a few input channels, such as the colours of an image: too few products for
// the transforms of Winograd to pay, and too few to hide their rounding.
#pragma once
#include "simd.h"
#include "weights.h"

namespace pathnet {
namespace {

// The 4x4 outputs whose patch begins at `x`, for one register of output channels. `u` holds
// [9 taps, channels] vectors, `u_step` floats apart.
PATHNET_INLINE void sum_tile(const float* x, int64_t row_stride, int64_t channels, const float* u,
                             int64_t u_step, Vector sum[kTile][kTile]) {
#pragma GCC unroll 3
  for (int row = 0; row < 3; ++row)
#pragma GCC unroll 3
    for (int column = 0; column < 3; ++column)
      for (int64_t c = 0; c < channels; ++c, u += u_step) {
        const Vector weight = load(u);
        const float* at = x + row * row_stride + column * kBlock + c;
#pragma GCC unroll 4
        for (int i = 0; i < kTile; ++i)
#pragma GCC unroll 4
          for (int j = 0; j < kTile; ++j) sum[i][j] += weight * at[i * row_stride + j * kBlock];
      }
}

template <typename Epilogue>
void convolve_directly(const Image* in, const Image& out, int64_t images, int64_t channels,
                       const float* weights, const Epilogue& epilogue) {
  const int64_t u_step = out.blocks * kBlock;
  for (int64_t n = 0; n < images; ++n)
    for (int64_t b = 0; b < out.blocks; ++b)
      for (int r = 0; r < kRegisters; ++r) {
        auto state = epilogue.begin(n, b, r);
        for (int64_t i = 0; i < out.height; i += kTile)
          for (int64_t j = 0; j < out.width; j += kTile) {
            Vector sum[kTile][kTile] = {};
            sum_tile(in[n].at(0, i - 1, j - 1), in[n].row_stride(), channels,
                     weights + b * kBlock + r * kLanes, u_step, sum);
            epilogue.move(state, i, j);
#pragma GCC unroll 4
            for (int row = 0; row < kTile; ++row)
#pragma GCC unroll 4
              for (int column = 0; column < kTile; ++column)
                if (i + row < out.height && j + column < out.width)
                  epilogue.put(state, sum[row][column], row, column);
          }
        epilogue.end(state, n, b, r);
      }
}

// Writes the output block `block` of u: [9 taps, input channels, output channels in blocks].
inline void pack_direct_weights(const WeightView& w, int64_t block, float* u) {
  TapBlock taps;
  gather_taps(w, block * kBlock, 0, taps);
  const int64_t step = blocks_of(w.out) * kBlock;
  float* to = u + block * kBlock;
  for (int tap = 0; tap < 9; ++tap)
    for (int64_t c = 0; c < w.in; ++c, to += step)
      for (int r = 0; r < kBlock; r += kLanes) store(to + r, load(taps.at[c][tap] + r));
}

}  // namespace
}  // namespace pathnet
