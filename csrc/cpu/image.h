#pragma once
#include <cstdint>
#include <cstring>

namespace pathnet {

// Channels are stored in blocks of 16 floats, one cache line; channels beyond the real ones hold
// zeros.
constexpr int64_t kBlock = 16;

constexpr int64_t round_up_to_block(int64_t channels) {
  return (channels + kBlock - 1) / kBlock * kBlock;
}

// One image in scratch memory: [height + 2, width + 2, channels] with a border of zeros, so that a
// 3x3 convolution reads its padding from memory and no kernel knows an edge.
struct Image {
  float* data = nullptr;
  int64_t height = 0;
  int64_t width = 0;
  int64_t channels = 0;  // a multiple of kBlock

  int64_t row_stride() const { return (width + 2) * channels; }
  float* row(int64_t i) const { return data + (i + 1) * row_stride() + channels; }

  // Gives the memory another shape. The border is cleared only where the shape is new; the inside
  // is left as it is.
  void reshape(int64_t new_height, int64_t new_width, int64_t new_channels) {
    if (new_height == height && new_width == width && new_channels == channels) return;
    height = new_height, width = new_width, channels = new_channels;
    const size_t row_bytes = row_stride() * sizeof(float), pixel_bytes = channels * sizeof(float);
    std::memset(data, 0, row_bytes);
    std::memset(row(height) - channels, 0, row_bytes);
    for (int64_t i = 0; i < height; ++i) {
      std::memset(row(i) - channels, 0, pixel_bytes);
      std::memset(row(i) + width * channels, 0, pixel_bytes);
    }
  }
};

}  // namespace pathnet
