#pragma once
// What one of several threads computes of a convolution.
#include <algorithm>
#include <vector>

#include "eval.h"

namespace pathnet {

// Some blocks of the output channels or, where images have one block, some rows of tiles: its
// results have the bits of the whole convolution's.
struct ConvPart {
  Conv conv;
  std::vector<Image> in, out;
};

inline Image rows_of(Image image, int64_t first, int64_t rows) {
  image.data += first * image.row_stride();  // what was a neighbour is now the border
  image.height = rows;
  return image;
}

inline Image blocks_of_image(Image image, int64_t first, int64_t blocks) {
  image.data += first * image.block_stride();
  image.blocks = blocks;
  return image;
}

inline Conv outputs_of(Conv conv, int64_t first, int64_t blocks) {
  conv.out_channels = std::min(blocks * kBlock, conv.out_channels - first * kBlock);
  conv.view.data += first * kBlock * conv.view.out_stride;
  conv.view.out = conv.out_channels;
  conv.scale += first * kBlock, conv.bias += first * kBlock;
  return conv;
}

// At most `most` parts, in order; weights must not be packed where it is more than one.
inline std::vector<ConvPart> split(const Conv& conv, const std::vector<Image>& in,
                                   const std::vector<Image>& out, int64_t most) {
  const int64_t blocks = conv.out_blocks(), rows = divide_up(out[0].height, Image::kTile);
  const bool by_rows = blocks == 1 && in[0].blocks == 1 && conv.stride == 1;
  const int64_t units = by_rows ? rows : blocks, count = std::min(most, units);
  std::vector<ConvPart> parts;
  for (int64_t p = 0; p < count; ++p) {
    const int64_t first = p * units / count, some = (p + 1) * units / count - first;
    ConvPart part{conv, in, out};
    if (count > 1 && by_rows) {
      const int64_t top = first * Image::kTile;
      const int64_t height = std::min(some * Image::kTile, out[0].height - top);
      for (auto* images : {&part.in, &part.out})
        for (Image& image : *images) image = rows_of(image, top, height);
    } else if (count > 1) {
      part.conv = outputs_of(conv, first, some);
      for (Image& image : part.out) image = blocks_of_image(image, first, some);
    }
    parts.push_back(std::move(part));
  }
  return parts;
}

// Whether the part does without packed weights.
inline bool is_small(const EvalKernels& kernels, const ConvPart& part) {
  const Image& out = part.out[0];
  const int64_t tiles = divide_up(out.height, Image::kTile) * divide_up(out.width, Image::kTile);
  return part.conv.kernel == 3 && part.conv.stride == 1 && !part.conv.is_direct() &&
         static_cast<int64_t>(part.out.size()) * tiles <= kernels.few_tiles;
}

}  // namespace pathnet
