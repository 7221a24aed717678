// A 1x1 convolution of images: a plain product over panels of pixels.
#pragma once
#include "product.h"
#include "transpose.h"
#include "winograd_weights.h"

namespace pathnet {
namespace {

// A run of pixels in one row of one image.
struct Run {
  int64_t image, row, column;  // of the first pixel
  int64_t pixels;
  int64_t at;  // of the first pixel in the panel
};

// Calls visit(run) for the pixels first ... first + count - 1 of the images, counted through.
template <typename Visit>
PATHNET_INLINE void for_runs(const Image& shape, int64_t first, int64_t count, const Visit& visit) {
  for (int64_t at = 0; at < count;) {
    const int64_t row = (first + at) / shape.width, column = (first + at) % shape.width;
    const Run run{row / shape.height, row % shape.height, column,
                  std::min(count - at, shape.width - column), at};
    visit(run);
    at += run.pixels;
  }
}

// Every stride-th pixel of the images, side by side: [in_blocks, tiles, 16].
inline void gather_pixels(const Image* in, int64_t stride, const Image& out, int64_t first,
                          int64_t count, int64_t tiles, float* panel) {
  for_runs(out, first, count, [&](const Run& run) {
    const Image& image = in[run.image];
    for (int64_t b = 0; b < image.blocks; ++b) {
      const float* from = image.at(b, run.row * stride, run.column * stride);
      float* to = panel + (b * tiles + run.at) * kBlock;
      for (int64_t j = 0; j < run.pixels; ++j, from += stride * kBlock, to += kBlock)
        for (int r = 0; r < kBlock; r += kLanes) store(to + r, load(from + r));
    }
  });
}

template <typename Epilogue>
void emit_pixels(const float* panel, int64_t tiles, const Image& out, int64_t first, int64_t count,
                 const Epilogue& epilogue) {
  for_runs(out, first, count, [&](const Run& run) {
    for (int64_t b = 0; b < out.blocks; ++b)
      for (int r = 0; r < kRegisters; ++r) {
        auto state = epilogue.begin(run.image, b, r);
        const float* products = panel + (b * tiles + run.at) * kBlock + r * kLanes;
        epilogue.move(state, run.row, run.column);
        for (int64_t j = 0; j < run.pixels; ++j)
          epilogue.put(state, load(products + j * kBlock), 0, j);
        epilogue.end(state, run.image, b, r);
      }
  });
}

// Pixels of one panel: enough to share out the weights, and an input that stays in the second
// cache; whole tiles of products in both directions.
inline int64_t panel_pixels(int64_t in_blocks, int64_t out_blocks) {
  constexpr int64_t kPixelBlocks = 4096;  // 256 KiB
  return round_up(std::clamp<int64_t>(kPixelBlocks / (in_blocks + out_blocks), 32, 256),
                  std::max(tile_multiple(in_blocks), tile_multiple(out_blocks)));
}

inline int64_t pixel_workspace_floats(int64_t in_blocks, int64_t out_blocks) {
  return (in_blocks + out_blocks) * panel_pixels(in_blocks, out_blocks) * kBlock;
}

template <typename Epilogue>
void convolve_pixels(const Image* in, int64_t stride, const Image& out, int64_t images,
                     const float* weights, float* workspace, const Epilogue& epilogue) {
  const int64_t pixels = images * out.height * out.width, in_blocks = in[0].blocks;
  const int64_t most = panel_pixels(in_blocks, out.blocks), multiple = tile_multiple(out.blocks);
  float* products = workspace + in_blocks * most * kBlock;
  for (int64_t first = 0; first < pixels; first += most) {
    const int64_t count = std::min(most, pixels - first), tiles = round_up(count, multiple);
    gather_pixels(in, stride, out, first, count, tiles, workspace);
    multiply_position({workspace, tiles * kBlock, in_blocks, weights, products, tiles * kBlock},
                      tiles, out.blocks);
    emit_pixels(products, tiles, out, first, count, epilogue);
  }
}

// Writes the output block `block` of u: [groups of kWidest blocks of output channels]
// [in_blocks * 16][blocks in the group * 16], as multiply_position reads it.
inline void pack_pixel_weights(const WeightView& w, int64_t block, float* u) {
  const int64_t out_blocks = blocks_of(w.out), in_channels = round_up(w.in, kBlock);
  const int64_t group = block / kWidest * kWidest,
                wide = std::min<int64_t>(kWidest, out_blocks - group);
  float* to = u + group * kBlock * in_channels + (block - group) * kBlock;
  alignas(64) float values[kBlock][kBlock];
  for (int64_t c = 0; c < in_channels; c += kBlock) {
    const float* source = w.data + block * kBlock * w.out_stride + c * w.in_stride;
    if (w.in_stride == 1 && c + kBlock <= w.in && (block + 1) * kBlock <= w.out) {
      transpose_block(source, w.out_stride, values[0], kBlock);
    } else {
      std::memset(values, 0, sizeof values);
      for (int64_t i = 0; i < std::min(kBlock, w.in - c); ++i)
        for (int64_t k = 0; k < std::min(kBlock, w.out - block * kBlock); ++k)
          values[i][k] = source[k * w.out_stride + i * w.in_stride];
    }
    for (int i = 0; i < kBlock; ++i)
      for (int r = 0; r < kBlock; r += kLanes)
        store(to + (c + i) * wide * kBlock + r, load(values[i] + r));
  }
}

}  // namespace
}  // namespace pathnet
