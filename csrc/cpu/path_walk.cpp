#include "path_walk.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>

#include "kept.h"
#include "layout.h"

namespace pathnet {
namespace {

// Packs all weights, on all threads.
Lent pack_weights(const char* op, Walk& walk) {
  static Keeper keeper;
  const int64_t count = walk.steps.size(), blocks = walk.shape.blocks;
  const int64_t each = count == 0 ? 0 : walk.steps[0].conv.weight_floats();
  Lent packed(keeper, count * each, std::string(op) + ": memory for the weights");
  torch::stable::parallel_for(
      0, count * blocks, 1, [&, data = packed.data()](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          eval_kernels().pack(walk.steps[i / blocks].conv, i % blocks, data + i / blocks * each);
      });
  for (int64_t i = 0; i < count; ++i) walk.steps[i].conv.weights = packed.data() + i * each;
  return packed;
}

// One thread's memory: some images before and behind a convolution.
class Group {
 public:
  static int64_t workspace_floats(const Walk& walk) {
    return walk.steps.empty() ? 0 : eval_kernels().workspace_floats(walk.steps[0].conv);
  }
  static int64_t floats(const Walk& walk, int64_t images) {
    return 2 * images * round_up(walk.shape.size(), kBlock) +
           round_up(workspace_floats(walk), kBlock);
  }

  Group(const Walk& walk, int64_t images, float* memory)
      : walk_(walk), masks_(images), whole_(walk.mask_words(), UINT16_MAX) {
    for (std::vector<Image>* part : {&gradient_, &other_}) {
      part->resize(images);
      for (Image& image : *part) {
        image.data = memory, memory += round_up(walk.shape.size(), kBlock);
        image.reshape(walk.shape.height, walk.shape.width, walk.shape.blocks);
      }
    }
    workspace_ = memory;
  }

  const Image& image(int64_t i) const { return gradient_[i]; }

  // Takes `images` gradients back; the first of them is that of image `first`.
  void run(int64_t first, int64_t images) {
    find_masks(walk_.mask, first, images);
    for (int64_t i = 0; i < images && walk_.mask != nullptr; ++i)
      eval_kernels().mask(gradient_[i], masks_[i]);
    for (const Walk::Step& step : walk_.steps) {
      find_masks(step.mask, first, images);
      take(step, images);
    }
  }

 private:
  void take(const Walk::Step& step, int64_t images) {
    using Way = Walk::Way;
    const bool back = step.way == Way::kBackWhole || step.way == Way::kBackCut;
    const Cut cut = step.way == Way::kBackWhole ? Cut::kSum
                    : step.way == Way::kBackCut ? Cut::kSummand
                                                : Cut::kResult;
    const std::vector<Image>&from = back ? other_ : gradient_, &to = back ? gradient_ : other_;
    eval_kernels().convolve_masked(step.conv, from.data(), to.data(), images, masks_.data(), cut,
                                   workspace_);
    if (step.way == Way::kOn) std::swap(gradient_, other_);
  }

  void find_masks(const uint16_t* mask, int64_t first, int64_t images) {
    for (int64_t i = 0; i < images; ++i)
      masks_[i] = mask == nullptr ? whole_.data()
                                  : mask + (first + i) % walk_.masked_images * walk_.mask_words();
  }

  const Walk& walk_;
  std::vector<Image> gradient_, other_;
  std::vector<const uint16_t*> masks_;
  std::vector<uint16_t> whole_;
  float* workspace_;
};

// Images that go through together: as many as keep two gradients of each in the second cache, but
// so few that every thread has work.
int64_t images_together(const Walk& walk, int64_t images) {
  constexpr int64_t kCache = 100 << 10;  // floats
  const int64_t each = std::max<int64_t>(1, kCache / (2 * walk.shape.size()));
  const int64_t threads = torch::stable::get_num_threads();
  return divide_up(images, std::max(divide_up(images, each), std::min(images, threads)));
}

}  // namespace

Tensor walk_back(const char* op, Walk& walk, const Tensor& gradient) {
  const int64_t images = gradient.size(0);
  const std::array<int64_t, 4> sizes = {images, gradient.size(1), gradient.size(2),
                                        gradient.size(3)};
  Tensor out =
      allocate_recycled(sizes, std::string(op) + ": the gradient", memory_format_of(gradient));
  if (images == 0) return out;
  const Lent packed = pack_weights(op, walk);

  const int64_t together = images_together(walk, images), count = divide_up(images, together);
  const int64_t workers = std::min<int64_t>(count, torch::stable::get_num_threads());
  const int64_t floats = Group::floats(walk, together);
  static Keeper keeper;
  Lent memory(keeper, workers * floats, std::string(op) + ": scratch memory");
  const float* from = gradient.const_data_ptr<float>();
  float *to = out.mutable_data_ptr<float>(), *memory_data = memory.data();
  std::atomic<int64_t> next_group{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      Group group(walk, together, memory_data + worker * floats);
      for (int64_t g; (g = next_group++) < count;) {
        const int64_t first = g * together, some = std::min(together, images - first);
        for (int64_t i = 0; i < some; ++i)
          eval_kernels().load(view(from, gradient, first + i), group.image(i));
        group.run(first, some);
        for (int64_t i = 0; i < some; ++i)
          eval_kernels().store(group.image(i), view(to, out, first + i));
      }
    }
  });
  return out;
}

}  // namespace pathnet
