#pragma once
// net_eval: which pixels and channels of an image a thread works on.
#include "tile.cuh"

namespace pathnet {

constexpr int kThreads = 512, kWarps = kThreads / 32;

// How the 16 warps share a stage of C channels: each takes 16 channels of every kDown-th group of
// 16 pixels, and holds at most T such groups.
template <int C, int T, bool kAllInRegisters = T <= 4>
struct Split {
  static constexpr int kChannels = C, kTiles = T;
  static constexpr int kAcross = C / 16, kDown = kWarps / kAcross;
  static constexpr int kMostPixels = kTiles * kDown * 16;
  using Next = Split<2 * C, T / 2, kAllInRegisters>;  // of the stage that follows

  // Where a value of each group is kept for long: in a register, or, where the sums take half of
  // those, in the thread's own memory. An index that the compiler does not know leads there.
  static constexpr bool kInRegisters = kAllInRegisters;
  static __device__ __forceinline__ int slot(int i) { return kInRegisters ? i : opaque(i); }
  static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }
  static __device__ __forceinline__ int across() { return threadIdx.x / 32 % kAcross; }
  static __device__ __forceinline__ int down() { return threadIdx.x / 32 / kAcross; }
  static __device__ __forceinline__ int first_row(int tile) { return (down() + tile * kDown) * 16; }
  static __device__ __forceinline__ int first_channel(int j) {
    return across() * 16 + j * 8 + opaque(lane()) % 4 * 2;
  }
};

// The pixels of this thread in a stage of height x width, under the split S. Places count pixels of
// the tile, halo included, and are kept in 16 bits, since registers are what the kernel is short
// of.
template <class S>
class Pixels {
 public:
  static constexpr int kTiles = S::kTiles;
  const int height, width;

  __device__ __forceinline__ Pixels(int height, int width) : height(height), width(width) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int row = S::first_row(i) + S::lane() / 4;
      places_[S::slot(i)] = place_of(row) | place_of(row + 8) << 16;
    }
  }
  __device__ __forceinline__ int pitch() const { return width + 2; }

  // Of row l / 4 or l / 4 + 8 of a group, which this thread writes; 0, in the halo, where there is
  // no pixel.
  __device__ __forceinline__ int place(int i, int half) const {
    return places_[S::slot(i)] >> (half * 16) & 0xffff;
  }

  // The upper left of the nine pixels of row l % 16, which this thread gives to ldmatrix, in a tile
  // of `pitch` pixels a line under a convolution of this stride; a row without a pixel reads the
  // first ones, for nobody.
  __device__ __forceinline__ int window(int i, int stride, int pitch) const {
    const int row = S::first_row(i) + opaque(S::lane()) % 16;
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
