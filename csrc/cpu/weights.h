// Weights of 3x3 convolutions in the Winograd domain, and their gradients back out of it.
#pragma once
#include <cstring>

#include "product.h"
#include "transpose.h"
#include "winograd.h"
#include "winograd_weights.h"

namespace pathnet {
namespace {

// Rows of G g. What is fused stands here and is not left to the compiler, so that every use rounds
// alike.
PATHNET_INLINE void weight_rows(const Vector g[3], Vector u[6]) {
  constexpr float kOverA = 1.0f / (2.0f * kA2 * (kA2 - kB2)),
                  kOverB = 1.0f / (2.0f * kB2 * (kB2 - kA2));
  const Vector even_a = multiply_add(kOverA, g[0], (kOverA * kA2) * g[2]);
  const Vector even_b = multiply_add(kOverB, g[0], (kOverB * kB2) * g[2]);
  u[0] = g[0] * (1.0f / (kA2 * kB2)), u[5] = g[2];
  u[1] = multiply_add(kOverA * kA, g[1], even_a), u[2] = multiply_add(-kOverA * kA, g[1], even_a);
  u[3] = multiply_add(kOverB * kB, g[1], even_b), u[4] = multiply_add(-kOverB * kB, g[1], even_b);
}

// Rows of G^T u, the adjoint of weight_rows
PATHNET_INLINE void weight_gradient_rows(const Vector u[6], Vector g[3]) {
  constexpr float kOverA = 1.0f / (2.0f * kA2 * (kA2 - kB2)),
                  kOverB = 1.0f / (2.0f * kB2 * (kB2 - kA2));
  const Vector sum_a = u[1] + u[2], sum_b = u[3] + u[4];
  g[0] = u[0] * (1.0f / (kA2 * kB2)) + kOverA * sum_a + kOverB * sum_b;
  g[1] = (kOverA * kA) * (u[1] - u[2]) + (kOverB * kB) * (u[3] - u[4]);
  g[2] = u[5] + (kOverA * kA2) * sum_a + (kOverB * kB2) * sum_b;
}

// G g G^T of one input channel and one register of output channels, given as g[tap]: calls
// put(position, value).
template <typename Put>
PATHNET_INLINE void transform_weight(const Vector g[9], const Put& put) {
  Vector rows[3][6];
  for (int j = 0; j < 3; ++j) {
    const Vector column[3] = {g[j], g[3 + j], g[6 + j]};
    weight_rows(column, rows[j]);
  }
  for (int i = 0; i < 6; ++i) {
    const Vector row[3] = {rows[0][i], rows[1][i], rows[2][i]};
    Vector out[6];
    weight_rows(row, out);
    for (int j = 0; j < 6; ++j) put(i * 6 + j, out[j]);
  }
}

// G^T u G
PATHNET_INLINE void transform_weight_gradient(const float* u, int64_t position_stride,
                                              Vector g[9]) {
  Vector rows[6][3];
  for (int j = 0; j < 6; ++j) {
    Vector column[6];
    for (int i = 0; i < 6; ++i) column[i] = load(u + (i * 6 + j) * position_stride);
    weight_gradient_rows(column, rows[j]);
  }
  for (int i = 0; i < 3; ++i) {
    Vector row[6], out[3];
    for (int j = 0; j < 6; ++j) row[j] = rows[j][i];
    weight_gradient_rows(row, out);
    for (int j = 0; j < 3; ++j) g[3 * i + j] = out[j];
  }
}

// The taps of 16 output channels at each of 16 input channels: [in][tap][out].
struct TapBlock {
  alignas(64) float at[kBlock][9][kBlock];
};

inline void gather_taps_slowly(const WeightView& w, int64_t out, int64_t in, TapBlock& taps) {
  std::memset(&taps, 0, sizeof taps);
  for (int64_t c = 0; c < std::min(kBlock, w.in - in); ++c)
    for (int64_t k = 0; k < std::min(kBlock, w.out - out); ++k) {
      const float* source = w.data + (out + k) * w.out_stride + (in + c) * w.in_stride;
      for (int tap = 0; tap < 9; ++tap)
        taps.at[c][tap][k] = source[tap / 3 * w.row_stride + tap % 3 * w.column_stride];
    }
}

// The nine taps stand side by side: [out, in, 3, 3] or, for a backward convolution, [in, out, 3,
// 3].
inline bool taps_touch(const WeightView& w) { return w.column_stride == 1 && w.row_stride == 3; }

// A whole block is transposed or copied, wherever taps or channels stand side by side.
inline void gather_taps(const WeightView& w, int64_t out, int64_t in, TapBlock& taps) {
  const bool whole = out + kBlock <= w.out && in + kBlock <= w.in;
  const float* source = w.data + out * w.out_stride + in * w.in_stride;
  const auto tap_at = [&](int tap) {
    return source + tap / 3 * w.row_stride + tap % 3 * w.column_stride;
  };
  if (whole && taps_touch(w) && w.in_stride == 9) {
    for (int part = 0; part < 9; ++part)
      transpose_block(source + part * kBlock, w.out_stride, taps.at[0][0] + part * kBlock * kBlock,
                      kBlock);
  } else if (whole && taps_touch(w) && w.out_stride == 9) {
    TapBlock turned;  // [out][tap][in]
    for (int part = 0; part < 9; ++part)
      transpose_block(source + part * kBlock, w.in_stride, turned.at[0][0] + part * kBlock * kBlock,
                      kBlock);
    for (int tap = 0; tap < 9; ++tap)
      transpose_block(turned.at[0][tap], 9 * kBlock, taps.at[0][tap], 9 * kBlock);
  } else if (whole && w.in_stride == 1) {
    for (int tap = 0; tap < 9; ++tap)
      transpose_block(tap_at(tap), w.out_stride, taps.at[0][tap], 9 * kBlock);
  } else if (whole && w.out_stride == 1) {
    for (int c = 0; c < kBlock; ++c)
      for (int tap = 0; tap < 9; ++tap)
        std::memcpy(taps.at[c][tap], tap_at(tap) + c * w.in_stride, kBlock * sizeof(float));
  } else {
    gather_taps_slowly(w, out, in, taps);
  }
}

// Calls for what gather_taps will read of the k-th of 16 output channels from `out` on: its lines
// lie too far apart for the processor to foresee them. Behind the last input channels come the
// output channels that follow.
PATHNET_INLINE void call_taps(const WeightView& w, int64_t out, int64_t in, int64_t k) {
  if (in >= w.in) in = 0, out += kBlock;
  if (out + k >= w.out) return;
  const float* source = w.data + (out + k) * w.out_stride + in * w.in_stride;
  for (int tap = 0; tap < 9; ++tap)  // or 9 lines of 16 channels whose taps touch
    __builtin_prefetch(source + (taps_touch(w)
                                     ? tap * kBlock
                                     : tap / 3 * w.row_stride + tap % 3 * w.column_stride));
}

// The output block `block` of w: calls put(c, r, position, value) for every input channel c, whole
// blocks of them, and register r.
template <typename Put>
PATHNET_INLINE void transform_weight_block(const WeightView& w, const Taps& taps, int64_t block,
                                           const Put& put) {
  TapBlock values;
  for (int64_t c = 0; c < round_up(w.in, kBlock); ++c) {
    if (c % kBlock == 0) gather_taps(w, block * kBlock, c, values);
    call_taps(w, block * kBlock, c / kBlock * kBlock + kBlock, c % kBlock);
    for (int r = 0; r < kRegisters; ++r) {
      Vector g[9];
      for (int tap = 0; tap < 9; ++tap)
        g[tap] = taps[tap] < 0 ? Vector{} : load(values.at[c % kBlock][taps[tap]] + r * kLanes);
      transform_weight(g, [&](int position, Vector v)
                              __attribute__((always_inline)) { put(c, r, position, v); });
    }
  }
}

// Weights of more floats than this do not stay in the second cache until they are read.
constexpr int64_t kStreamedWeights = int64_t{1} << 20;

// The output block `block` of w, at `place` in u: [positions][groups of kWidest blocks of output
// channels][in_blocks * 16][blocks in the group * 16], as multiply_position reads it.
inline void transform_weight_block(const WeightView& w, const Taps& taps, const Placement& place,
                                   int64_t block, float* u) {
  const int64_t in_channels = place.in_blocks * kBlock;
  const int64_t position_stride = position_floats(place.in_blocks, place.out_blocks);
  const int64_t column = place.first_out + block, group = column / kWidest * kWidest;
  const int64_t row_stride = std::min<int64_t>(kWidest, place.out_blocks - group) * kBlock;
  float* to = u + group * kBlock * in_channels + (column - group) * kBlock +
              place.first_in * kBlock * row_stride;
  const bool streamed =
      kRegisters == 1 && transformed_floats(place.in_blocks, place.out_blocks) > kStreamedWeights;
  transform_weight_block(
      w, taps, block, [=](int64_t c, int r, int position, Vector v) __attribute__((always_inline)) {
        float* at = to + position * position_stride + c * row_stride + r * kLanes;
        streamed ? stream(at, v) : store(at, v);
      });
  if (streamed) finish_streams();
}

}  // namespace
}  // namespace pathnet
