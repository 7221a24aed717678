// Winograd's F(4x4, 3x3): 16 outputs of a 3x3 convolution from a 6x6 patch by 36 products instead
// of 144,
//     Y = A^T [ (G g G^T) . (B^T d B) ] A,
// with the interpolation points 0, +-1/sqrt 2, +-sqrt 2 and infinity, whose rounding errors are a
// third of those of the usual 0, +-1, +-2 (docs/numerics.md).
// Lavin and Gray, Fast algorithms for convolutional neural networks, 2015, section 4.
#pragma once
#include "simd.h"

namespace pathnet {
namespace {

constexpr int kPatch = 6;                    // side of the patch that a tile reads
constexpr int kPositions = kPatch * kPatch;  // products of one tile
constexpr int kTile = Image::kTile;

// The points +-a and +-b, and their powers.
constexpr float kA = 0.70710678f, kB = 1.41421356f;
constexpr float kA2 = 0.5f, kB2 = 2.0f, kA3 = kA * kA2, kB3 = kB * kB2;

// Rows of B^T d, in the pairs that share work.
PATHNET_INLINE void input_rows_0_5(const Vector d[6], Vector& r0, Vector& r5) {
  r0 = (d[4] - (kA2 + kB2) * d[2]) + kA2 * kB2 * d[0];
  r5 = (d[5] - (kA2 + kB2) * d[3]) + kA2 * kB2 * d[1];
}
PATHNET_INLINE void input_rows_1_2(const Vector d[6], Vector& r1, Vector& r2) {
  const Vector even = d[4] - kB2 * d[2], odd = d[3] - kB2 * d[1];
  r1 = even + kA * odd, r2 = even - kA * odd;
}
PATHNET_INLINE void input_rows_3_4(const Vector d[6], Vector& r3, Vector& r4) {
  const Vector even = d[4] - kA2 * d[2], odd = d[3] - kA2 * d[1];
  r3 = even + kB * odd, r4 = even - kB * odd;
}

// A^T m
PATHNET_INLINE void output_rows(const Vector m[6], Vector y[4]) {
  const Vector sum_a = m[1] + m[2], difference_a = m[1] - m[2];
  const Vector sum_b = m[3] + m[4], difference_b = m[3] - m[4];
  y[0] = m[0] + sum_a + sum_b;
  y[1] = kA * difference_a + kB * difference_b;
  y[2] = kA2 * sum_a + kB2 * sum_b;
  y[3] = (kA3 * difference_a + m[5]) + kB3 * difference_b;
}

// A y, the adjoint of output_rows
PATHNET_INLINE void gradient_rows(const Vector y[4], Vector m[6]) {
  const Vector even_a = y[0] + kA2 * y[2], odd_a = kA * y[1] + kA3 * y[3];
  const Vector even_b = y[0] + kB2 * y[2], odd_b = kB * y[1] + kB3 * y[3];
  m[0] = y[0], m[5] = y[3];
  m[1] = even_a + odd_a, m[2] = even_a - odd_a;
  m[3] = even_b + odd_b, m[4] = even_b - odd_b;
}

// Two rows of B^T d B for `tiles` tiles in a row, for one register of channels: calls
// put(position, tile, value). The first transform of a column serves the two tiles that share it.
// Three such passes, since all six rows need more registers than there are.
template <int kRow0, int kRow1, typename Put>
PATHNET_INLINE void input_row_pair(const float* patch, int64_t row_stride, int64_t tiles,
                                   const Put& put) {
  Vector w0[6], w1[6];
  const auto column = [&](int64_t x, Vector& r0, Vector& r1) __attribute__((always_inline)) {
    Vector d[6];
    const float* from = patch + x * kBlock;
    for (int i = kRow0 == 0 ? 0 : 1; i < (kRow0 == 0 ? 6 : 5); ++i)
      d[i] = load(from + i * row_stride);
    if constexpr (kRow0 == 0) input_rows_0_5(d, r0, r1);
    if constexpr (kRow0 == 1) input_rows_1_2(d, r0, r1);
    if constexpr (kRow0 == 3) input_rows_3_4(d, r0, r1);
  };
  const auto emit = [&](const Vector w[6], int row, int64_t tile) __attribute__((always_inline)) {
    Vector r[6];
    input_rows_0_5(w, r[0], r[5]);
    input_rows_1_2(w, r[1], r[2]);
    input_rows_3_4(w, r[3], r[4]);
    for (int j = 0; j < 6; ++j) put(row * 6 + j, tile, r[j]);
  };
  column(0, w0[0], w1[0]);
  column(1, w0[1], w1[1]);
  for (int64_t t = 0; t < tiles; ++t) {
    for (int j = 2; j < 6; ++j) column(t * kTile + j, w0[j], w1[j]);
    emit(w0, kRow0, t);
    emit(w1, kRow1, t);
    w0[0] = w0[4], w0[1] = w0[5], w1[0] = w1[4], w1[1] = w1[5];
  }
}

// B^T d B of `tiles` tiles in a row, for a block of channels: calls put_of(r)(position, tile,
// value) for register r. `patch` is the upper left corner of the first tile's patch. All registers
// of a cache line are written close to one another.
template <typename PutOf>
PATHNET_INLINE void transform_input(const float* patch, int64_t row_stride, int64_t tiles,
                                    const PutOf& put_of) {
  for (int r = 0; r < kRegisters; ++r)
    input_row_pair<0, 5>(patch + r * kLanes, row_stride, tiles, put_of(r));
  for (int r = 0; r < kRegisters; ++r)
    input_row_pair<1, 2>(patch + r * kLanes, row_stride, tiles, put_of(r));
  for (int r = 0; r < kRegisters; ++r)
    input_row_pair<3, 4>(patch + r * kLanes, row_stride, tiles, put_of(r));
}

// A^T m A of one tile for one register of channels: calls emit(j, y) with each column y of it.
template <typename Emit>
PATHNET_INLINE void transform_output(const float* products, int64_t position_stride,
                                     const Emit& emit) {
  Vector rows[kTile][6];
  for (int i = 0; i < 6; ++i) {
    Vector m[6], y[kTile];
    for (int j = 0; j < 6; ++j) m[j] = load(products + (i * 6 + j) * position_stride);
    output_rows(m, y);
    for (int j = 0; j < kTile; ++j) rows[j][i] = y[j];
  }
  for (int j = 0; j < kTile; ++j) {
    Vector y[kTile];
    output_rows(rows[j], y);
    emit(j, y);
  }
}

}  // namespace
}  // namespace pathnet
