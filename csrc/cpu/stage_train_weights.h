#pragma once
// The gradient of a convolution's weights from chunks of the batch, each summed up by one thread.
#include "stage_train_batch.h"

namespace pathnet::train {

// Chunks of the batch: as many as threads can share, few enough that merging them costs little
// beside the products. Their number depends on the shape alone.
struct Chunks {
  static constexpr int64_t kMost = 8;
  int64_t group, images, count;
  Chunks(int64_t batch, const Extent& extent)
      : group(group_images(extent)),
        images(group *
               std::max<int64_t>(1, divide_up(divide_up(batch, group), most(batch, extent)))),
        count(divide_up(batch, images)) {}

 private:
  static int64_t most(int64_t batch, const Extent& extent) {
    constexpr int64_t kTilesPerChannel = 2;
    const int64_t enough = kTilesPerChannel * extent.channels();
    return std::clamp<int64_t>(batch * tiles_of(extent) / enough, 2, kMost);
  }
};

class WeightGradients {
 public:
  WeightGradients(const Plan& plan);

  // The sums of a chunk, for a pass over it to add to, where `own` is the thread's memory: those of
  // a 3x3 convolution stand in the Winograd domain.
  float* sums(const Conv& conv, int64_t chunk, float* own) const;
  static int64_t own_floats(const Plan& plan);

  // Turns a chunk's sums into its part of the gradient.
  void finish(const Conv& conv, int64_t chunk, const float* sums) const;

  // Adds the parts up in the order of the chunks: a gradient like the weight.
  Tensor merge(const Conv& conv, int64_t chunks) const;

 private:
  float* part(const Conv& conv, int64_t chunk) const;

  Tensor parts_;
};

}  // namespace pathnet::train
