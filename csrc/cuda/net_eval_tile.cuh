#pragma once
// net_eval: which pixels and channels of an image a thread works on.
#include "tile.cuh"

namespace pathnet {

constexpr int kThreads = 512, kWarps = kThreads / 32;

// How the 16 warps share a stage of C channels: each takes 16 channels of every kDown-th group of
// 16 pixels, and holds at most kTiles such groups. So a stage has at most 1024, 256 and 64 pixels
// with 16, 32 and 64 channels.
template <int C>
struct Split {
  static constexpr int kAcross = C / 16, kDown = kWarps / kAcross,
                       kTiles = 64 / (kAcross * kAcross) / kDown;
  static constexpr int kMostPixels = kTiles * kDown * 16;
  static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }
  static __device__ __forceinline__ int across() { return threadIdx.x / 32 % kAcross; }
  static __device__ __forceinline__ int down() { return threadIdx.x / 32 / kAcross; }
  static __device__ __forceinline__ int first_row(int tile) { return (down() + tile * kDown) * 16; }
  static __device__ __forceinline__ int first_channel(int j) {
    return across() * 16 + j * 8 + opaque(lane()) % 4 * 2;
  }
};

// The pixels of this thread in a stage of height x width. Places count pixels of the tile, halo
// included, and are kept in 16 bits, since registers are what the kernel is short of.
template <int C>
class Pixels {
 public:
  static constexpr int kTiles = Split<C>::kTiles;
  const int height, width;

  __device__ __forceinline__ Pixels(int height, int width) : height(height), width(width) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int row = Split<C>::first_row(i) + Split<C>::lane() / 4;
      places_[i] = place_of(row) | place_of(row + 8) << 16;
    }
  }
  __device__ __forceinline__ int pitch() const { return width + 2; }

  // Of row l / 4 or l / 4 + 8 of a group, which this thread writes; 0, in the halo, where there is
  // no pixel.
  __device__ __forceinline__ int place(int i, int half) const {
    return places_[i] >> (half * 16) & 0xffff;
  }

  // The upper left of the nine pixels of row l % 16, which this thread gives to ldmatrix, in a tile
  // of `pitch` pixels a line under a convolution of this stride; a row without a pixel reads the
  // first ones, for nobody.
  __device__ __forceinline__ int window(int i, int stride, int pitch) const {
    const int row = Split<C>::first_row(i) + opaque(Split<C>::lane()) % 16;
    return row < height * width ? row / width * stride * pitch + row % width * stride : 0;
  }

 private:
  __device__ __forceinline__ unsigned place_of(int row) const {
    return row < height * width ? (row / width + 1) * pitch() + row % width + 1 : 0;
  }
  unsigned places_[kTiles];
};

template <class Op, int C>
__device__ void zero_halo(Tile<Op, C> tile, int height, int width) {
  constexpr int kChunks = Tile<Op, C>::kChunks;
  const int pitch = width + 2, border = 2 * (pitch + height);
  for (int i = threadIdx.x; i < border * kChunks; i += kThreads) {
    const int k = i / kChunks, side = k - 2 * pitch;
    const int pixel = k < pitch       ? k
                      : k < 2 * pitch ? (height + 1) * pitch + k - pitch
                                      : (side / 2 + 1) * pitch + side % 2 * (width + 1);
    *reinterpret_cast<uint4*>(tile.chunk(pixel, i % kChunks)) = make_uint4(0, 0, 0, 0);
  }
}

}  // namespace pathnet
