#pragma once
#include <array>
#include <cstdint>

#include "image.h"

namespace pathnet {

// Floats from one position's weights to the next one's: a line more than they fill, or all
// positions would meet in the same lines of the caches while they are written.
constexpr int64_t position_floats(int64_t in_blocks, int64_t out_blocks) {
  return (in_blocks * out_blocks * kBlock + 1) * kBlock;
}

// Of a 3x3 convolution's transformed weights, 36 positions.
constexpr int64_t transformed_floats(int64_t in_blocks, int64_t out_blocks) {
  return 36 * position_floats(in_blocks, out_blocks);
}

// Weights [out, in, 3, 3] with any strides; those of a backward convolution have `out` and `in`
// exchanged.
struct WeightView {
  const float* data;
  int64_t out, in;
  int64_t out_stride, in_stride, row_stride, column_stride;
};

// Where the transformed weights stand among those of several phases: first block, and blocks in
// all.
struct Placement {
  int64_t first_in, in_blocks, first_out, out_blocks;
};

// Which tap of the weights stands at each place of the 3x3 kernel; -1: none.
using Taps = std::array<int, 9>;
constexpr Taps kPlainTaps = {0, 1, 2, 3, 4, 5, 6, 7, 8};

// A convolution of stride 2 is one of stride 1 over the four phases x[2i + a][2j + b] of its input:
// of three taps in a row, phase 0 meets the middle one and phase 1 the outer ones, the first of
// them a place earlier.
constexpr Taps phase_taps(int a, int b) {
  constexpr int kTapOf[2][3] = {{-1, 1, -1}, {0, 2, -1}};
  Taps taps{};
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) {
      const int row = kTapOf[a][i], column = kTapOf[b][j];
      taps[3 * i + j] = row < 0 || column < 0 ? -1 : 3 * row + column;
    }
  return taps;
}

// The taps of the backward convolution.
constexpr Taps rotated(const Taps& taps) {
  Taps result{};
  for (int i = 0; i < 9; ++i) result[i] = taps[8 - i];
  return result;
}

// The order in which the phases (a, b) follow one another as blocks of channels (convolve.h).
struct Phase {
  int row, column;
};
constexpr std::array<Phase, 4> kPhases = {{{0, 0}, {0, 1}, {1, 1}, {1, 0}}};
constexpr int phase_at(int row, int column) { return row == 0 ? column : 3 - column; }

}  // namespace pathnet
