// A 3x3 convolution of a few tiles. Its transformed weights would take longer to write and to read
// again than to multiply, so they are made in registers, where they are multiplied: one row of
// six positions at a time.
#pragma once
#include "convolve.h"
#include "weights.h"

namespace pathnet {
namespace {

constexpr int kFewTiles = 4;  // sums of a row of six positions then fill 24 registers

// Row i of G g G^T, for 16 output channels at one input channel, by the steps of transform_weight.
template <int i>
PATHNET_INLINE void weight_row(const float taps[9][kBlock], Vector u[kPatch]) {
  Vector row[3];
  for (int j = 0; j < 3; ++j) {
    const Vector column[3] = {load(taps[j]), load(taps[3 + j]), load(taps[6 + j])};
    Vector rows[kPatch];
    weight_rows(column, rows);
    row[j] = rows[i];
  }
  weight_rows(row, u);
}

// The products of 16 x 16 channels at the positions of row i, added to m unless they are fresh.
// v and m are those of position (i, 0).
template <int i>
PATHNET_INLINE void multiply_row(const float* v, int64_t v_position, const TapBlock& taps, float* m,
                                 int64_t m_position, bool fresh) {
  Vector sum[kPatch][kFewTiles];
  for (int j = 0; j < kPatch; ++j)
    for (int t = 0; t < kFewTiles; ++t)
      sum[j][t] = fresh ? Vector{} : load(m + j * m_position + t * kBlock);
  for (int c = 0; c < kBlock; ++c) {
    Vector u[kPatch];
    weight_row<i>(taps.at[c], u);
    for (int j = 0; j < kPatch; ++j)
      for (int t = 0; t < kFewTiles; ++t)
        sum[j][t] = multiply_add(v[j * v_position + t * kBlock + c], u[j], sum[j][t]);
  }
  for (int j = 0; j < kPatch; ++j)
    for (int t = 0; t < kFewTiles; ++t) store(m + j * m_position + t * kBlock, sum[j][t]);
}

template <int... i>
void multiply_square(const float* v, int64_t v_position, const TapBlock& taps, float* m,
                     int64_t m_position, bool fresh, std::integer_sequence<int, i...>) {
  (multiply_row<i>(v + i * kPatch * v_position, v_position, taps, m + i * kPatch * m_position,
                   m_position, fresh),
   ...);
}

// Adds the products of a chain of input channels to m.
inline void join(const Panel& chain, float* m, int64_t m_position) {
  for (int p = 0; p < kPositions; ++p)
    for (int64_t i = 0; i < kFewTiles * kBlock; i += kLanes) {
      float* to = m + p * m_position + i;
      store(to, load(to) + load(chain.data + p * chain.position_stride + i));
    }
}

// As `convolve`, with the same bits, for up to kFewTiles tiles and weights as the user has them.
template <typename Epilogue>
void convolve_few(const Image* in, const Image& out, int64_t images, const WeightView& weights,
                  float* workspace, const Epilogue& epilogue) {
  const int64_t tiles = images * divide_up(out.height, kTile) * divide_up(out.width, kTile);
  const int64_t in_blocks = in[0].blocks, length = chain_of(in_blocks);
  const Panel v(workspace, in_blocks, kFewTiles);
  const Panel m(workspace + kPositions * v.position_stride, out.blocks, kFewTiles);
  const Panel chain(m.data + kPositions * m.position_stride, 1, kFewTiles);  // behind the first one
  gather(in, 0, tiles, v);
  for (int64_t k = 0; k < out.blocks; ++k)
    for (int64_t c = 0; c < in_blocks; ++c) {
      TapBlock taps;
      gather_taps(weights, k * kBlock, c * kBlock, taps);
      for (int64_t i = 0; i < kBlock; ++i) call_taps(weights, k * kBlock, (c + 1) * kBlock, i);
      const Panel& to = c < length ? m : chain;
      multiply_square(v.at(c, 0, 0), v.position_stride, taps, to.at(c < length ? k : 0, 0, 0),
                      to.position_stride, c % length == 0,
                      std::make_integer_sequence<int, kPatch>());
      if (c >= length && ((c + 1) % length == 0 || c + 1 == in_blocks))
        join(chain, m.at(k, 0, 0), m.position_stride);
    }
  scatter(m, out, 0, tiles, epilogue);
}

}  // namespace
}  // namespace pathnet
