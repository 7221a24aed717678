#pragma once
#include <cstdint>
#include <cstring>

namespace pathnet {

// Channels are stored in blocks of 16 floats, one cache line; channels beyond the real ones hold
// zeros.
constexpr int64_t kBlock = 16;

constexpr int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }
constexpr int64_t round_up(int64_t value, int64_t to) { return divide_up(value, to) * to; }
constexpr int64_t blocks_of(int64_t channels) { return divide_up(channels, kBlock); }

// An image in scratch memory: [blocks, 1 + height + 1, 1 + width + 1, 16], height and width rounded
// up to whole 4x4 tiles. Everything around the image is zero, so that a 3x3 convolution reads its
// padding from memory and no kernel knows an edge.
struct Image {
  float* data = nullptr;
  int64_t height = 0;
  int64_t width = 0;
  int64_t blocks = 0;

  static constexpr int64_t kTile = 4;  // outputs of one Winograd tile in each direction

  int64_t row_stride() const { return (round_up(width, kTile) + 2) * kBlock; }
  int64_t block_stride() const { return (round_up(height, kTile) + 2) * row_stride(); }
  int64_t size() const { return blocks * block_stride(); }  // in floats
  // pixel (i, j) of a block; rows and columns count from -1
  float* at(int64_t block, int64_t i, int64_t j) const {
    return data + block * block_stride() + (i + 1) * row_stride() + (j + 1) * kBlock;
  }

  // Gives the memory another shape. What surrounds the image is cleared where the shape is new; the
  // inside is left as it is.
  void reshape(int64_t new_height, int64_t new_width, int64_t new_blocks) {
    if (new_height == height && new_width == width && new_blocks == blocks) return;
    height = new_height, width = new_width, blocks = new_blocks;
    for (int64_t b = 0; b < blocks; ++b) clear_border(b);
  }

 private:
  void clear_border(int64_t block) const {
    constexpr int64_t kPixel = kBlock * sizeof(float);
    const int64_t row = row_stride() * sizeof(float);
    const int64_t bottom = round_up(height, kTile) + 1, right = round_up(width, kTile) + 1;
    std::memset(at(block, -1, -1), 0, row);
    std::memset(at(block, height, -1), 0, (bottom - height) * row);
    for (int64_t i = 0; i < height; ++i) {
      std::memset(at(block, i, -1), 0, kPixel);
      for (int64_t j = width; j < right; ++j) std::memset(at(block, i, j), 0, kPixel);
    }
  }
};

}  // namespace pathnet
