// Weights of 3x3 convolutions in the Winograd domain, and their gradients back out of it.
#pragma once
#include <cstring>

#include "product.h"
#include "winograd.h"
#include "winograd_weights.h"

namespace pathnet {
namespace {

// Rows of G g
PATHNET_INLINE void weight_rows(const Vector g[3], Vector u[6]) {
  constexpr float kOverA = 1.0f / (2.0f * kA2 * (kA2 - kB2)),
                  kOverB = 1.0f / (2.0f * kB2 * (kB2 - kA2));
  const Vector even_a = kOverA * g[0] + (kOverA * kA2) * g[2], odd_a = (kOverA * kA) * g[1];
  const Vector even_b = kOverB * g[0] + (kOverB * kB2) * g[2], odd_b = (kOverB * kB) * g[1];
  u[0] = g[0] * (1.0f / (kA2 * kB2)), u[5] = g[2];
  u[1] = even_a + odd_a, u[2] = even_a - odd_a;
  u[3] = even_b + odd_b, u[4] = even_b - odd_b;
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

// G g G^T of one input channel and one register of output channels, given as g[tap].
PATHNET_INLINE void transform_weight(const Vector g[9], float* u, int64_t position_stride) {
  Vector rows[3][6];
  for (int j = 0; j < 3; ++j) {
    const Vector column[3] = {g[j], g[3 + j], g[6 + j]};
    weight_rows(column, rows[j]);
  }
  for (int i = 0; i < 6; ++i) {
    const Vector row[3] = {rows[0][i], rows[1][i], rows[2][i]};
    Vector out[6];
    weight_rows(row, out);
    for (int j = 0; j < 6; ++j) store(u + (i * 6 + j) * position_stride, out[j]);
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

// For the output channels first ... first + 15 and one input channel: each tap's values in a row.
inline void gather_taps(const WeightView& w, const Taps& taps, int64_t first, int64_t in,
                        float values[9][kBlock]) {
  const int64_t count = std::clamp<int64_t>(w.out - first, 0, kBlock);
  std::memset(values, 0, 9 * kBlock * sizeof(float));
  if (in >= w.in) return;
  const float* source = w.data + first * w.out_stride + in * w.in_stride;
  for (int64_t k = 0; k < count; ++k, source += w.out_stride) {
    const float scale = w.scale == nullptr ? 1.0f : w.scale[first + k];
    for (int tap = 0; tap < 9; ++tap)
      if (taps[tap] >= 0)
        values[tap][k] =
            scale * source[taps[tap] / 3 * w.row_stride + taps[tap] % 3 * w.column_stride];
  }
}

// Writes the part `place` of u: [positions][groups of kWidest blocks of output channels]
// [in_blocks * 16][blocks in the group * 16], as multiply_position reads it.
void transform_weights(const WeightView& w, const Taps& taps, const Placement& place, float* u) {
  const int64_t in_channels = place.in_blocks * kBlock;
  const int64_t position_stride = in_channels * place.out_blocks * kBlock;
  alignas(64) float values[9][kBlock];
  for (int64_t first = 0; first < w.out; first += kBlock) {
    const int64_t block = place.first_out + first / kBlock, group = block / kWidest * kWidest;
    const int64_t wide = std::min<int64_t>(kWidest, place.out_blocks - group);
    float* to = u + group * kBlock * in_channels + (block - group) * kBlock;
    for (int64_t c = 0; c < round_up(w.in, kBlock); ++c) {
      gather_taps(w, taps, first, c, values);
      float* row = to + (place.first_in * kBlock + c) * wide * kBlock;
      for (int r = 0; r < kRegisters; ++r) {
        Vector g[9];
        for (int tap = 0; tap < 9; ++tap) g[tap] = load(values[tap] + r * kLanes);
        transform_weight(g, row + r * kLanes, position_stride);
      }
    }
  }
}

}  // namespace
}  // namespace pathnet
