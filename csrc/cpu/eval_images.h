// Passes over whole images: from and to the user's tensors, phases, batch norm with ReLU.
#pragma once
#include "eval.h"
#include "transpose.h"

namespace pathnet {
namespace {

// Copies `count` <= 16 floats; most often it is 16.
PATHNET_INLINE void copy_floats(const float* from, int64_t count, float* to) {
  if (count == kBlock)
    for (int r = 0; r < kBlock; r += kLanes) store_loose(to + r, load_loose(from + r));
  else
    std::memcpy(to, from, count * sizeof(float));
}

// to[j][c] = from[c][j] for `rows` channels and `columns` pixels, at most 16 each.
PATHNET_INLINE void transpose_part(const float* from, int64_t from_row, int64_t rows,
                                   int64_t columns, float* to, int64_t to_row) {
  if (rows == kBlock && columns == kBlock) return transpose_block(from, from_row, to, to_row);
  alignas(64) float square[kBlock][kBlock] = {}, turned[kBlock][kBlock];
  for (int64_t i = 0; i < rows; ++i) copy_floats(from + i * from_row, columns, square[i]);
  transpose_block(square[0], kBlock, turned[0], kBlock);
  for (int64_t j = 0; j < columns; ++j) copy_floats(turned[j], rows, to + j * to_row);
}

// One row of pixels and one block of channels.
inline void load_row(const View<const float>& from, int64_t channels, int64_t width, float* to) {
  if (channels < kBlock) std::memset(to, 0, width * kBlock * sizeof(float));
  if (from.channel == 1) {
    for (int64_t j = 0; j < width; ++j)
      copy_floats(from.data + j * from.column, channels, to + j * kBlock);
  } else if (from.column == 1) {
    for (int64_t j = 0; j < width; j += kBlock)
      transpose_part(from.data + j, from.channel, channels, std::min(kBlock, width - j),
                     to + j * kBlock, kBlock);
  } else {
    for (int64_t j = 0; j < width; ++j)
      for (int64_t c = 0; c < channels; ++c)
        to[j * kBlock + c] = from.data[c * from.channel + j * from.column];
  }
}

inline void store_row(const float* from, int64_t channels, int64_t width, const View<float>& to) {
  if (to.channel == 1) {
    for (int64_t j = 0; j < width; ++j)
      copy_floats(from + j * kBlock, channels, to.data + j * to.column);
  } else if (to.column == 1) {
    for (int64_t j = 0; j < width; j += kBlock)
      transpose_part(from + j * kBlock, kBlock, std::min(kBlock, width - j), channels, to.data + j,
                     to.channel);
  } else {
    for (int64_t j = 0; j < width; ++j)
      for (int64_t c = 0; c < channels; ++c)
        to.data[c * to.channel + j * to.column] = from[j * kBlock + c];
  }
}

template <typename T>
View<T> row_of(const View<T>& view, int64_t block, int64_t i) {
  View<T> row = view;
  row.data += block * kBlock * view.channel + i * view.row;
  return row;
}

void load_image(const View<const float>& from, const Image& to) {
  for (int64_t b = 0; b < to.blocks; ++b)
    for (int64_t i = 0; i < to.height; ++i)
      load_row(row_of(from, b, i), std::min(kBlock, from.channels - b * kBlock), to.width,
               to.at(b, i, 0));
}

void store_image(const Image& from, const View<float>& to) {
  for (int64_t b = 0; b < from.blocks; ++b)
    for (int64_t i = 0; i < from.height; ++i)
      store_row(from.at(b, i, 0), std::min(kBlock, to.channels - b * kBlock), from.width,
                row_of(to, b, i));
}

void split_phases(const Image& in, const Image& out) {
  for (int phase = 0; phase < 4; ++phase)
    for (int64_t b = 0; b < in.blocks; ++b)
      for (int64_t i = 0; i < out.height; ++i) {
        const int64_t row = 2 * i + kPhases[phase].row;
        const float* from =
            in.at(b, row, kPhases[phase].column);  // beyond the image there are zeros
        float* to = out.at(phase * in.blocks + b, i, 0);
        for (int64_t j = 0; j < out.width; ++j, from += 2 * kBlock, to += kBlock)
          copy_floats(from, kBlock, to);
      }
}

void affine_relu(const Image& in, const float* scale, const float* shift, const Image& out) {
  for (int64_t b = 0; b < in.blocks; ++b) {
    Vector factor[kRegisters], summand[kRegisters];
    for (int r = 0; r < kRegisters; ++r) {
      factor[r] = load(scale + b * kBlock + r * kLanes);
      summand[r] = load(shift + b * kBlock + r * kLanes);
    }
    for (int64_t i = 0; i < in.height; ++i) {
      const float* from = in.at(b, i, 0);
      float* to = out.at(b, i, 0);
      for (int64_t j = 0; j < in.width; ++j, from += kBlock, to += kBlock)
        for (int r = 0; r < kRegisters; ++r)
          store(to + r * kLanes, relu(load(from + r * kLanes) * factor[r] + summand[r]));
    }
  }
}

}  // namespace
}  // namespace pathnet
