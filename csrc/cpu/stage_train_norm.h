#pragma once
// Batch norms of a training step: from sums over the batch to the numbers that passes use.
#include "stage_train_plan.h"

namespace pathnet::train {

// Per channel values of a batch norm, each padded to whole blocks with zeros. Kept for the
// backward.
struct NormState {
  static constexpr int64_t kRows = 4;
  float *mean, *rstd, *scale, *shift;  // y = scale * u + shift
  NormState(float* memory, int64_t padded)
      : mean(memory),
        rstd(memory + padded),
        scale(memory + 2 * padded),
        shift(memory + 3 * padded) {}
  AffineRelu activation() const { return {scale, shift}; }
};

// Statistics of a batch from its images' sums (train_kernels.h), merged in the order of the images
// by the formulas of Chan, Golub and LeVeque, 1983; or the running ones. Running statistics move.
void finish_norm(const Norm& norm, const float* sums, int64_t images, int64_t pixels,
                 const NormState& state);

// Sixteen channels' values as the kernels load them.
struct alignas(64) ChannelBlock {
  float of[kBlock] = {};
};

// What the sums over g and g * (u - mean) say: the gradients of weight and bias, and the constants
// of d = a * s * g + b * u + c, where the norm's output was multiplied by s of each image.
struct NormBackward {
  std::vector<ChannelBlock> a, b, c;
  const float* multipliers;  // null: 1
  std::vector<double> weight, bias;
  NormGradient gradient(const float* g, const float* u) const {
    return {g, u, a[0].of, b[0].of, c[0].of, multipliers};
  }
};
NormBackward norm_backward(const Norm& norm, const NormState& state, const float* sums,
                           int64_t images, int64_t pixels, const float* multipliers);

}  // namespace pathnet::train
