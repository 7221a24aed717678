#pragma once
// A part of an image in shared memory, as operands of products.
#include "operand.cuh"

namespace pathnet {

// An image of C channels with a halo of one pixel, pixel after pixel, each in chunks of 16 bytes:
// chunk c of pixel p stands at c ^ (p / kPixelsInLine % 8), so that one chunk of 8 neighbours lies
// in 8 different parts of the 128 bytes that shared memory gives at once (docs/net-eval.md).
template <class Op, int C>
struct Tile {
  using Element = typename Op::Element;
  static constexpr int kPixelBytes = C * sizeof(Element), kChunks = kPixelBytes / 16;
  static constexpr int kPixelsInLine = kChunks < 8 ? 8 / kChunks : 1,
                       kMask = (kChunks < 8 ? kChunks : 8) - 1;
  static constexpr int kInChunk = 16 / sizeof(Element);

  unsigned char* memory;

  __device__ __forceinline__ unsigned char* chunk(int pixel, int c) const {
    return memory + pixel * kPixelBytes + ((c ^ (pixel / kPixelsInLine & kMask)) << 4);
  }
  __device__ __forceinline__ Element* channel(int pixel, int c) const {
    return reinterpret_cast<Element*>(chunk(pixel, c / kInChunk)) + c % kInChunk;
  }
};

}  // namespace pathnet
