#pragma once
// stage_train: a 3x3 convolution of a band by tensor cores, forward or transposed.
#include "stage_train_band.cuh"

namespace pathnet::train {

// A weight [outputs, inputs, 3, 3] in any layout, as the factor of a product over channels k into
// channels n: for the data gradient the taps run backwards.
struct Weights {
  const void* first;  // of k = n = 0 and the product's first tap
  bool is_float;      // in float32, and not in the type of the activations
  int64_t by_k, by_n, by_tap;
};

template <class Op>
__device__ __forceinline__ float weight_at(const Weights& w, int k, int n, int tap) {
  const int64_t at = k * w.by_k + n * w.by_n + tap * w.by_tap;
  if (w.is_float) return __ldg(static_cast<const float*>(w.first) + at);
  return Op::load(static_cast<const typename Op::Element*>(w.first) + at);
}

// A product's steps: two chunks of 16 bytes of one tap.
template <class Op, int C>
struct Steps {
  static constexpr int kInTap = Tile<Op, C>::kChunks / 2;
  static constexpr int kFragments = 9 * kInTap * Warps<C>::kAcross * 32;  // of 16 bytes, a lane's
  static constexpr int kBytes = kFragments * 16;
};

// All fragments of the weights into shared memory, in the order in which the lanes read them.
template <class Op, int C>
__device__ void pack_weights(uint4* to, const Weights& w) {
  for (int i = threadIdx.x; i < Steps<Op, C>::kFragments; i += Warps<C>::kThreads) {
    const int lane = i % 32, across = i / 32 % Warps<C>::kAcross, step = i / 32 / Warps<C>::kAcross;
    const int tap = step / Steps<Op, C>::kInTap, n = across * 16 + lane / 4;
    const int first = step % Steps<Op, C>::kInTap * Op::kDepth;
    unsigned words[4];
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const int column = n + word / 2 * 8, half = first + word % 2 * (Op::kDepth / 2);
      if constexpr (sizeof(typename Op::Element) == 2) {
        const int k = half + lane % 4 * 2;
        words[word] =
            Op::pack(weight_at<Op>(w, k, column, tap), weight_at<Op>(w, k + 1, column, tap));
      } else {
        const float value = Op::factor(weight_at<Op>(w, half + lane % 4, column, tap));
        memcpy(words + word, &value, 4);
      }
    }
    to[i] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

// The sums of one thread: of group i, channels first_channel(j) and the next, of pixels lane / 4
// and then lane / 4 + 8.
template <int C>
struct Sums {
  float at[Warps<C>::kTiles][2][4];
};

// sums = the convolution of the tile around the groups of 16 pixels that begin at pixel `first` and
// every 16 kDown pixels after it.
template <class Op, int C>
__device__ __forceinline__ void convolve(const Tile<Op, C>& tile, const uint4* weights,
                                         const Batch& batch, int pixels, int first, Sums<C>& sums) {
  constexpr int kTiles = Warps<C>::kTiles;
  const int lane = Warps<C>::lane();
  int windows[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    const int q = first + i * Warps<C>::kDown * 16 + lane % 16;
    windows[i] = q < pixels ? batch.window(q) : 0;  // for nobody
#pragma unroll
    for (int k = 0; k < 8; ++k) sums.at[i][k / 4][k % 4] = 0.f;
  }
  const uint4* fragment = weights + Warps<C>::across() * 32 + lane;
#pragma unroll 1
  for (int row = 0; row < 3; ++row) {
#pragma unroll
    for (int step = 0; step < 3 * Steps<Op, C>::kInTap; ++step) {
      const int shift = row * batch.pitch() + step / Steps<Op, C>::kInTap;
      const int chunk = step % Steps<Op, C>::kInTap * 2 + lane / 16;
      const uint4 b = fragment[step * Warps<C>::kAcross * 32];
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        unsigned a[4];
        load_matrices(a, tile.chunk(windows[i] + shift, chunk));
        Op::multiply(sums.at[i][0], a, b.x, b.y);
        Op::multiply(sums.at[i][1], a, b.z, b.w);
      }
    }
    fragment += 3 * Steps<Op, C>::kInTap * Warps<C>::kAcross * 32;
  }
}

// Calls visit(q, j, low, high) for each pair of channels of each pixel q of the band that `sums`
// has.
template <int C, class Visit>
__device__ __forceinline__ void for_each_pair(const Sums<C>& sums, int pixels, int first,
                                              Visit visit) {
#pragma unroll
  for (int i = 0; i < Warps<C>::kTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int q = first + i * Warps<C>::kDown * 16 + Warps<C>::lane() / 4 + half * 8;
      if (q >= pixels) continue;
#pragma unroll
      for (int j = 0; j < 2; ++j) visit(q, j, sums.at[i][j][half * 2], sums.at[i][j][half * 2 + 1]);
    }
  }
}

}  // namespace pathnet::train
