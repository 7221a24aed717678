#pragma once
// stage_train, forward: the statistics of a value, and from them the state of the norm that reads
// it.
#include "stage_train_sums.cuh"

namespace pathnet::train {

struct NormPlan {
  const float *weight, *bias;
  float *running_mean, *running_var;
  int64_t* batches;
  float eps, momentum, multiplier;  // the block's s for its last norm, else 1
  bool batch_stats, moves;
};

// Sums about the first value that the thread sees, which lose no digits to a large mean.
struct ShiftedSums {
  float pivot[4], sum[4], squares[4];
  int count = 0;  // of pixels

  __device__ __forceinline__ void add(int k, float value) {
    if (count == 0) pivot[k] = value, sum[k] = squares[k] = 0.f;
    const float apart = value - pivot[k];
    sum[k] += apart, squares[k] = fmaf(apart, apart, squares[k]);
  }
  __device__ __forceinline__ Moments moments(int k) const {
    if (count == 0) return {0.f, 0.f, 0.f};
    const float mean = sum[k] / count;
    return {static_cast<float>(count), pivot[k] + mean, fmaxf(squares[k] - sum[k] * mean, 0.f)};
  }
};

// The sums of a thread block, of the pairs of channels that each thread has of its pixels.
template <int C>
class NormSums {
 public:
  static constexpr int kSharedBytes = SumRows<Moments, C>::kBytes;

  // Pair j of a pixel, as it is stored; both pairs in order.
  __device__ __forceinline__ void add(int j, float2 stored) {
    sums_.add(j * 2, stored.x), sums_.add(j * 2 + 1, stored.y);
    sums_.count += j;  // both pairs of this pixel are in
  }

  // The norm's state [4, C], and its running statistics: all threads together.
  __device__ void finish(const NormPlan& norm, float* state, unsigned char* shared, float* slots,
                         int* counter) const {
    const int c = threadIdx.x;
    if (!norm.batch_stats) {
      if (blockIdx.x == 0 && c < C)
        write(norm, state, c, norm.running_mean[c], sqrtf(norm.running_var[c] + norm.eps));
      return;
    }
    Moments mine[4], total;
    for (int k = 0; k < 4; ++k) mine[k] = sums_.moments(k);
    const SumRows<Moments, C> rows{shared};
    rows.clear();
    rows.add(mine);
    if (!merge_over_grid(rows, slots, counter, total)) return;
    write(norm, state, c, total.mean, sqrtf(total.squares / total.count + norm.eps));
    if (!norm.moves) return;
    const float variance = total.squares / (total.count - 1.f);
    norm.running_mean[c] += norm.momentum * (total.mean - norm.running_mean[c]);
    norm.running_var[c] += norm.momentum * (variance - norm.running_var[c]);
    if (c == 0) *norm.batches += 1;
  }

 private:
  static __device__ void write(const NormPlan& norm, float* state, int c, float mean,
                               float deviation) {
    const float scale = norm.multiplier * norm.weight[c] / deviation;
    state[kMean * C + c] = mean;
    state[kInverse * C + c] = 1.f / deviation;
    state[kScale * C + c] = scale;
    state[kShift * C + c] = norm.multiplier * norm.bias[c] - mean * scale;
  }

  ShiftedSums sums_;
};

}  // namespace pathnet::train
