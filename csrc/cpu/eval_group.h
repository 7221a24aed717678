#pragma once
#include <array>
#include <vector>

#include "crew.h"
#include "stage_plan.h"

namespace pathnet {

// A few images, taken through the blocks of a section together, so that they stay in the cache of a
// thread and share each reading of the weights. Threads that have no images help with the
// convolutions.
class Group {
 public:
  // Floats of memory for up to `images` images.
  static int64_t floats(const Section& section, int64_t images) {
    constexpr int64_t kBuffers = 4;  // a value before and behind a block, and two inside it
    return kBuffers * images * section.image_floats;
  }
  // Of scratch memory, which groups may share.
  static int64_t scratch_floats(const Plan& plan);

  Group(const Plan& plan, const Section& section, const Switches& switches, int64_t images,
        float* memory, float* scratch);

  int64_t capacity() const { return stream_.size(); }  // in images

  // Where image i of the group goes in, empty and of the right shape.
  const Image& input(int64_t i);
  // Takes `images` images through the blocks, as the leader of `crew`; the first of them is image
  // `first` of the batch.
  void run(int64_t first, int64_t images, Crew& crew);
  const Image& output(int64_t i) const { return stream_[i]; }

 private:
  using Images = std::vector<Image>;

  void sort(int64_t block, int64_t first, int64_t images);
  void run_shortcut(const Block& block, int64_t images);
  void run_branch(int64_t index, const Images& value);
  void keep_bits(int64_t block, int64_t relu, const Images& values) const;
  void convolve(const ConvNorm& step, const Images& in, const Images& out,
                const Epilogue& epilogue);
  Images reshaped(Images& images, size_t count, const Shape& shape);

  const Plan& plan_;
  const Section section_;
  const Switches& switches_;
  const int64_t workspace_;            // floats of scratch memory; behind them weights stand
  float* const scratch_;               // of one convolution
  Images stream_, next_;               // the value before the block and behind it
  std::array<Images, 2> inner_;        // values inside the branch
  Crew* crew_ = nullptr;               // of this run
  int64_t first_ = 0;                  // image of the batch
  std::vector<int64_t> runs_, rests_;  // images of the group that run the block, and the others
  std::vector<float> scales_;          // the multipliers of those that run it
};

}  // namespace pathnet
