#pragma once
// Batch-sized values of a training step, and the loops that share their images out to threads.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <vector>

#include "ranges.h"
#include "stage_train_plan.h"

namespace pathnet::train {

inline float* data(const Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

// Memory for batches [images, blocks, height, width, 16], used again when nobody holds it any more.
class Pool {
 public:
  using Batch = std::shared_ptr<Tensor>;
  Pool(const char* op, int64_t images) : op_(op), images_(images) {}
  Batch take(const Extent& extent);

 private:
  const char* op_;
  int64_t images_;
  std::map<std::array<int64_t, 3>, std::vector<Tensor>> free_;  // by height, width and blocks
};
using Batch = Pool::Batch;
inline float* data(const Batch& batch) { return batch == nullptr ? nullptr : data(*batch); }

// One bit for each value of a batch: [images, blocks, height, width] 16-bit words.
Batch new_bits(const char* op, int64_t images, const Extent& extent);
inline uint16_t* bits(const Batch& batch) {
  return batch == nullptr ? nullptr : static_cast<uint16_t*>(batch->data_ptr());
}

// The plan's images of a tensor [N, C, H, W] of any layout to a batch and back, zeros in the
// channels that only fill a block. `alive` cuts the values whose bit is not set.
void to_batch(const Plan& plan, const Tensor& x, const Extent& extent, float* batch);
void from_batch(const Plan& plan, const float* batch, const Extent& extent, const uint16_t* alive,
                const Tensor& x);

// The images that do not run, of two tensors of one shape.
void pass_others(const Plan& plan, const Tensor& from, const Tensor& to);

inline int64_t tiles_of(const Extent& image) {
  return divide_up(image.height, Image::kTile) * divide_up(image.width, Image::kTile);
}

// Images that a pass takes through the cache together: enough tiles for its panels. It depends on
// the shape alone, as do the chunks below, so that sums are formed in the same order on any number
// of threads.
int64_t group_images(const Extent& extent);

// The largest of what any block of the plan needs, in floats.
int64_t workspace_floats(const Plan& plan);
int64_t widest(const Plan& plan);  // channels of one norm

// Threads' scratch memory for passes.
class Workers {
 public:
  Workers(const char* op, int64_t floats_each);

  // Calls pass(first, count, workspace) for all groups of images.
  template <typename Pass>
  void for_groups(int64_t images, int64_t group, const Pass& pass) const {
    share(divide_up(images, group), [&](int64_t i, float* workspace) {
      pass(i * group, std::min(group, images - i * group), workspace);
    });
  }

  // Calls body(i, workspace) once for i = 0 ... count - 1.
  template <typename Body>
  void share(int64_t count, const Body& body) const {
    const int64_t workers = std::min(workers_, count);
    Ranges ranges(count, workers);
    float* const memory = data(memory_);
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker)
        for (int64_t i; (i = ranges.take(worker)) >= 0;) body(i, memory + worker * floats_);
    });
  }

 private:
  int64_t workers_, floats_;
  Tensor memory_;
};

// A pass over a convolution.
template <typename Pass>
Pass pass_of(const Conv& conv) {
  Pass pass;
  pass.in_extent = conv.in;
  pass.out_extent = conv.out;
  pass.kernel = conv.kernel;
  pass.stride = conv.stride;
  return pass;
}

// Sets one image's sums to zero, before a pass adds to them.
inline void clear_sums(float* sums, int64_t image, const Extent& extent) {
  const int64_t floats = kSums * extent.channels();
  std::fill_n(sums + image * floats, floats, 0.0f);
}

}  // namespace pathnet::train
