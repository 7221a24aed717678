#pragma once
#include <array>
#include <vector>

#include "stage_plan.h"

namespace pathnet {

// The memory and the work of one thread: a few images, taken through all blocks together, so that
// they stay in its cache and share each reading of the weights.
class Group {
 public:
  // Floats of memory for groups of up to `images` images.
  static int64_t floats(const Plan& plan, int64_t images);

  Group(const Plan& plan, const Switches& switches, int64_t images, float* memory);

  // Where image i of the group goes in, empty and of the right shape.
  const Image& input(int64_t i);
  // Takes `images` images through the blocks; the first of them is image `first` of the batch.
  void run(int64_t first, int64_t images);
  const Image& output(int64_t i) const { return stream_[i]; }

 private:
  using Images = std::vector<Image>;

  void sort(int64_t block, int64_t first, int64_t images);
  void run_shortcut(const Block& block, int64_t images);
  void run_branch(const Block& block, const Images& value);
  bool is_small(const Conv& conv, const Images& out) const;
  void convolve(const ConvNorm& step, const Images& in, const Images& out,
                const Epilogue& epilogue);
  Images reshaped(Images& images, size_t count, const Shape& shape);

  const Plan& plan_;
  const Switches& switches_;
  Images stream_, next_;               // the value before the block and behind it
  std::array<Images, 2> inner_;        // values inside the branch
  float *workspace_, *weights_;        // of one convolution
  std::vector<int64_t> runs_, rests_;  // images of the group that run the block, and the others
  std::vector<float> scales_;          // the multipliers of those that run it
};

}  // namespace pathnet
