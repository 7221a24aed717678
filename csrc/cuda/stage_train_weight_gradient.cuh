#pragma once
// stage_train: the weight gradient of a convolution, held in registers while a thread block walks
// over its bands.
#include "stage_train_band.cuh"

namespace pathnet::train {

// dW[o, i, tap] = sum over pixels q of g[q, o] source[q + tap, i]. A warp has 16 outputs, 16 inputs
// and all taps, of every kDown-th step of pixels.
template <class Op, int C>
class WeightGradient {
 public:
  static constexpr int kSide = C / 16, kAcross = kSide * kSide;
  static constexpr int kDown = Warps<C>::kCount / kAcross, kFloats = 9 * 2 * 4;
  static constexpr int kSharedBytes = kDown > 1 ? kAcross * kFloats * 32 * 4 : 0;

  __device__ WeightGradient() {
#pragma unroll
    for (int i = 0; i < kFloats; ++i) at(i) = 0.f;
  }

  __device__ __forceinline__ void add(const Tile<Op, C>& g, const Tile<Op, C>& source,
                                      const Batch& batch, int pixels) {
#pragma unroll 1
    for (int step = down(); step * Op::kDepth < pixels; step += kDown) {
      if constexpr (sizeof(typename Op::Element) == 2) {
        add_halves(g, source, batch, pixels, step * Op::kDepth);
      } else {
        add_floats(g, source, batch, pixels, step * Op::kDepth);
      }
    }
  }

  // Adds up what the warps have of different pixels, in their order, and writes it into `slot`,
  // laid out as the weight is, times `scale`.
  __device__ void write(float* shared, float* slot, int64_t by_output, int64_t by_input,
                        int64_t by_tap, float scale) {
    float* mine = shared + across() * kFloats * 32 + lane();
#pragma unroll 1
    for (int d = 1; d < kDown; ++d) {
#pragma unroll
      for (int i = 0; i < kFloats; ++i)
        if (down() == d) mine[i * 32] = at(i);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kFloats; ++i)
        if (down() == 0) at(i) += mine[i * 32];
      __syncthreads();
    }
    if (down() != 0) return;
#pragma unroll
    for (int i = 0; i < kFloats; ++i) {
      const int output = first_output() + lane() / 4 + i % 4 / 2 * 8;
      const int input = first_input() + i / 4 % 2 * 8 + lane() % 4 * 2 + i % 2;
      slot[output * by_output + input * by_input + i / 8 * by_tap] = scale * at(i);
    }
  }

 private:
  static __device__ __forceinline__ int lane() { return opaque(threadIdx.x) % 32; }
  static __device__ __forceinline__ int across() { return opaque(threadIdx.x) / 32 % kAcross; }
  static __device__ __forceinline__ int down() { return opaque(threadIdx.x) / 32 / kAcross; }
  static __device__ __forceinline__ int first_output() { return across() / kSide * 16; }
  static __device__ __forceinline__ int first_input() { return across() % kSide * 16; }
  __device__ __forceinline__ float& at(int i) { return sums_[i / 8][i / 4 % 2][i % 4]; }

  // 16 pixels: both factors lie pixel after pixel, and are transposed on their way into registers.
  __device__ __forceinline__ void add_halves(const Tile<Op, C>& g, const Tile<Op, C>& source,
                                             const Batch& batch, int pixels, int first) {
    const int q = first + lane() % 16, window = q < pixels ? batch.window(q) : 0;
    const int middle = q < pixels ? window + batch.pitch() + 1 : 0;  // or a zero, at the side
    unsigned d[4];
    load_matrices_transposed(d, g.chunk(middle, first_output() / 8 + lane() / 16));
    const unsigned a[4] = {d[0], d[2], d[1], d[3]};
#pragma unroll
    for (int tap = 0; tap < 9; ++tap) {
      const int pixel = window + tap / 3 * batch.pitch() + tap % 3;
      unsigned b[4];
      load_matrices_transposed(b, source.chunk(pixel, first_input() / 8 + lane() / 16));
      Op::multiply(sums_[tap][0], a, b[0], b[1]);
      Op::multiply(sums_[tap][1], a, b[2], b[3]);
    }
  }

  // 8 pixels; no instruction transposes 4-byte elements, so each is loaded by itself.
  __device__ __forceinline__ void add_floats(const Tile<Op, C>& g, const Tile<Op, C>& source,
                                             const Batch& batch, int pixels, int first) {
    int windows[2], middles[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int q = first + lane() % 4 + k * 4;
      windows[k] = q < pixels ? batch.window(q) : 0;
      middles[k] = q < pixels ? windows[k] + batch.pitch() + 1 : 0;
    }
    unsigned a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      memcpy(a + i, g.channel(middles[i / 2], first_output() + lane() / 4 + i % 2 * 8), 4);
#pragma unroll
    for (int tap = 0; tap < 9; ++tap) {
      const int shift = tap / 3 * batch.pitch() + tap % 3;
      unsigned b[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        memcpy(b + i,
               source.channel(windows[i % 2] + shift, first_input() + lane() / 4 + i / 2 * 8), 4);
      Op::multiply(sums_[tap][0], a, b[0], b[1]);
      Op::multiply(sums_[tap][1], a, b[2], b[3]);
    }
  }

  float sums_[9][2][4];
};

}  // namespace pathnet::train
