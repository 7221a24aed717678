#pragma once
// net_eval: a convolution from the tile in shared memory into float32 sums in registers, by tensor
// cores.
#include "net_eval_weights.cuh"

namespace pathnet {

// The sums of one thread: of group i, channels first_channel(j) and the next, rows l / 4 and then l
// / 4 + 8.
template <class S>
struct Sums {
  alignas(16) float at[S::kTiles][2][4];
  __device__ __forceinline__ Sums() {
#pragma unroll
    for (int i = 0; i < S::kTiles; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int k = 0; k < 4; ++k) at[i][j][k] = 0.f;
  }
};

// A value for each of this thread's four channels.
template <class S>
struct Channels {
  float2 at[2];
  __device__ __forceinline__ explicit Channels(const float* vector) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
      at[j] = __ldg(reinterpret_cast<const float2*>(vector + S::first_channel(j)));
  }
  __device__ __forceinline__ float of(int j, int k) const { return k % 2 == 0 ? at[j].x : at[j].y; }
};

__host__ __device__ constexpr int largest_divisor(int n, int most) {
  int d = n < most ? n : most;
  while (n % d != 0) --d;
  return d;
}

// The products of a convolution come in steps, two chunks of one tap each, and the steps in slices
// of equal length.
template <class Op, int CIn, int COut, int kTaps>
struct Steps {
  static constexpr int kInTap = Tile<Op, CIn>::kChunks / 2, kAll = kTaps * kInTap;
  static constexpr int kBytes = COut / 16 * 32 * 16;
  static constexpr int kInSlice = largest_divisor(kAll, kSliceBytes / kBytes),
                       kSlices = kAll / kInSlice;
};

// sums += conv(tile), of the stride kStride. The first slice's barrier makes the tile visible that
// was written before; whoever writes the tile afterwards needs a barrier of its own. kTaps is 9 or
// 1, the one in the middle.
template <int kTaps, int kStride, class Op, int CIn, class S>
__device__ __forceinline__ void multiply(Tile<Op, CIn> tile, int pitch, const Pixels<S>& pixels,
                                         WeightStream& weights, Sums<S>& sums) {
  using All = Steps<Op, CIn, S::kChannels, kTaps>;
  constexpr int kUnroll = S::kInRegisters ? All::kInSlice : 1;
  const int lane = threadIdx.x % 32;
  int windows[S::kTiles];
#pragma unroll
  for (int i = 0; i < S::kTiles; ++i) windows[i] = pixels.window(i, kStride, pitch);
#pragma unroll 1
  for (int slice = 0; slice < All::kSlices; ++slice) {
    const uint4* of_slice = weights.next() + S::across() * 32 + lane;
#pragma unroll kUnroll
    for (int s = 0; s < All::kInSlice; ++s) {
      const int step = slice * All::kInSlice + s, tap = kTaps == 1 ? 4 : step / All::kInTap;
      const int shift = tap / 3 * pitch + tap % 3, chunk = step % All::kInTap * 2 + lane / 16;
      const uint4 b = of_slice[s * S::kAcross * 32];
#pragma unroll
      for (int i = 0; i < S::kTiles; ++i) {
        unsigned a[4];
        load_matrices(a, tile.chunk(windows[i] + shift, chunk));
        Op::multiply(sums.at[i][0], a, b.x, b.y);
        Op::multiply(sums.at[i][1], a, b.z, b.w);
      }
    }
  }
}

// Writes value(sum, j, k) of every pixel into the tile, rounded to an operand.
template <class Op, class S, class Value>
__device__ __forceinline__ void write_tile(Tile<Op, S::kChannels> tile, const Pixels<S>& pixels,
                                           const Sums<S>& sums, Value value) {
#pragma unroll
  for (int i = 0; i < S::kTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int place = opaque(pixels.place(i, half));
      if (place == 0) continue;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int k = half * 2;
        Op::store_pair(tile.channel(place, S::first_channel(j)), value(sums.at[i][j][k], j, k),
                       value(sums.at[i][j][k + 1], j, k + 1));
      }
    }
  }
}

// sums = value(sum, j, k)
template <class S, class Value>
__device__ __forceinline__ void change(Sums<S>& sums, Value value) {
#pragma unroll
  for (int i = 0; i < S::kTiles; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int k = 0; k < 4; ++k) sums.at[i][j][k] = value(sums.at[i][j][k], j, k);
}

// The residual stream x of one thread. Where it would take more than a quarter of the registers it
// waits in the thread's own memory, which the L1 cache keeps, while other sums are made.
template <class S>
class Stream {
 public:
  __device__ __forceinline__ Sums<S> load() const {
    Sums<S> x;
#pragma unroll
    for (int i = 0; i < S::kTiles; ++i) memcpy(&x.at[i], &sums_.at[S::slot(i)], sizeof x.at[i]);
    return x;
  }
  __device__ __forceinline__ void store(const Sums<S>& x) {
#pragma unroll
    for (int i = 0; i < S::kTiles; ++i) memcpy(&sums_.at[S::slot(i)], &x.at[i], sizeof x.at[i]);
  }

 private:
  Sums<S> sums_;
};

}  // namespace pathnet
