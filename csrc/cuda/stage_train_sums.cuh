#pragma once
// stage_train: sums a channel over the whole batch. Thread blocks put theirs into slots, and the
// last to arrive adds them up in the order of the blocks, so bits do not depend on who is last.
#include "stage_train_band.cuh"

namespace pathnet::train {

enum StateRow {
  kMean,
  kInverse,
  kScale,
  kShift
};  // of a norm, [4, C]: s norm(u) = scale u + shift

__device__ __forceinline__ float from_lane(float value, int bits) {
  return __shfl_xor_sync(~0u, value, bits);
}

struct Moments {  // of so many values: mean, and sum of squared deviations
  static constexpr int kFloats = 3;
  float count, mean, squares;

  // Chan, Golub and LeVeque 1979.
  __device__ __forceinline__ void merge(const Moments& other) {
    const float both = count + other.count;
    if (both == 0.f) return;
    const float apart = other.mean - mean, share = other.count / both;
    mean = fmaf(apart, share, mean);
    squares += other.squares + apart * apart * count * share;
    count = both;
  }
  __device__ __forceinline__ Moments of_lane(int bits) const {
    return {from_lane(count, bits), from_lane(mean, bits), from_lane(squares, bits)};
  }
};

struct GradientSums {  // of the gradient g behind a norm, and of g xhat
  static constexpr int kFloats = 2;
  float g, products;

  __device__ __forceinline__ void merge(const GradientSums& other) {
    g += other.g, products += other.products;
  }
  __device__ __forceinline__ GradientSums of_lane(int bits) const {
    return {from_lane(g, bits), from_lane(products, bits)};
  }
};

// Whether this thread block is the last; what the others stored before is then visible.
__device__ inline bool last_to_arrive(int* counter, int* flag) {
  __syncthreads();  // every thread has stored
  if (threadIdx.x == 0) {
    *flag = add_acquire_release(counter, 1) == static_cast<int>(gridDim.x) - 1;
    if (*flag) *counter = 0;
  }
  __syncthreads();
  return *flag != 0;
}

// Rows of sums in shared memory: first one for each of the kDown warps along the pixels, then one
// for each part of the slots. Only its owner touches an entry before the barrier of
// merge_over_grid.
template <class Partial, int C>
struct SumRows {
  static constexpr int kParts = Warps<C>::kThreads / C;  // that take neighbouring slots each
  static constexpr int kRows = kParts > Warps<C>::kDown ? kParts : Warps<C>::kDown;
  static constexpr int kBytes = kRows * C * sizeof(Partial) + 16;

  unsigned char* memory;

  __device__ __forceinline__ Partial& at(int row, int channel) const {
    return reinterpret_cast<Partial*>(memory)[row * C + channel];
  }
  __device__ __forceinline__ int* flag() const {
    return reinterpret_cast<int*>(memory + kBytes - 16);
  }
  // This thread's sum k is that of channel first_channel(k / 2) + k % 2.
  __device__ __forceinline__ Partial& of_warp(int k) const {
    return at(Warps<C>::down(), Warps<C>::first_channel(k / 2) + k % 2);
  }
  __device__ void clear() const {
    if (Warps<C>::lane() >= 4) return;
#pragma unroll
    for (int k = 0; k < 4; ++k) of_warp(k) = {};
  }
  __device__ void add(Partial (&mine)[4]) const {
    for (int bits = 4; bits < 32; bits *= 2) {
#pragma unroll
      for (int k = 0; k < 4; ++k) mine[k].merge(mine[k].of_lane(bits));
    }
    if (Warps<C>::lane() >= 4) return;
#pragma unroll
    for (int k = 0; k < 4; ++k) of_warp(k).merge(mine[k]);
  }
};

template <class Partial>
__device__ __forceinline__ Partial load_slot(const float* slot) {
  float floats[Partial::kFloats];
#pragma unroll
  for (int i = 0; i < Partial::kFloats; ++i) floats[i] = __ldcg(slot + i);
  Partial partial;
  memcpy(&partial, floats, sizeof partial);
  return partial;
}

template <class Partial>
__device__ __forceinline__ void store_slot(float* slot, const Partial& partial) {
  float floats[Partial::kFloats];
  memcpy(floats, &partial, sizeof partial);
#pragma unroll
  for (int i = 0; i < Partial::kFloats; ++i) slot[i] = floats[i];
}

// True for thread c < C of the last thread block, which then has the total of channel c. slots:
// [thread blocks, C].
template <class Partial, int C>
__device__ bool merge_over_grid(const SumRows<Partial, C>& rows, float* slots, int* counter,
                                Partial& total) {
  constexpr int kParts = SumRows<Partial, C>::kParts;
  __syncthreads();  // every warp has added
  const int channel = threadIdx.x % C, part = threadIdx.x / C;
  if (part == 0) {
    Partial sum = rows.at(0, channel);
    for (int d = 1; d < Warps<C>::kDown; ++d) sum.merge(rows.at(d, channel));
    store_slot(slots + (static_cast<int64_t>(blockIdx.x) * C + channel) * Partial::kFloats, sum);
  }
  if (!last_to_arrive(counter, rows.flag())) return false;
  const int blocks = gridDim.x, each = (blocks + kParts - 1) / kParts;
  Partial sum{};
  for (int slot = part * each; slot < min(blocks, (part + 1) * each); ++slot)
    sum.merge(
        load_slot<Partial>(slots + (static_cast<int64_t>(slot) * C + channel) * Partial::kFloats));
  rows.at(part, channel) = sum;
  __syncthreads();
  if (part != 0) return false;
  total = sum;
  for (int p = 1; p < kParts; ++p) total.merge(rows.at(p, channel));
  return true;
}

}  // namespace pathnet::train
