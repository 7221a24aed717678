// path_bwd: a gradient back along one path, through the branches that the path takes.
//
// With its norms folded into the weights a branch is two convolutions, each followed by the mask of
// a ReLU; the blocks around which the path goes are masks alone, ANDed before the call. Depth-first
// as in stage_eval: a thread takes a group of images through all of it, so that gradients stay in
// its cache. An image's result depends on that image alone, so the bits depend neither on the
// groups nor on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <vector>

#include "eval.h"
#include "kept.h"
#include "layout.h"

namespace pathnet {
namespace {

template <typename T>
View<T> view(T* data, const Tensor& x, int64_t n) {
  return {data + n * x.stride(0), x.size(1), x.stride(1), x.stride(2), x.stride(3)};
}

struct Path {
  Image shape;  // of every gradient on the way
  std::vector<Conv> convs;
  std::vector<const uint16_t*> masks;  // one before the first convolution, and one behind each
  int64_t masked_images;               // of each mask, read in turn

  int64_t mask_words() const { return shape.blocks * shape.height * shape.width; }
};

Conv read_conv(const Tensor& weight, int64_t channels) {
  check_cpu(weight, ScalarType::Float, "path_bwd: a tensor of weights");
  check_shape(weight, {channels, channels, 3, 3}, "path_bwd: a tensor of weights");
  Conv conv;
  conv.in_channels = conv.out_channels = channels, conv.kernel = 3;
  conv.view = {weight.const_data_ptr<float>(),
               channels,
               channels,
               weight.stride(0),
               weight.stride(1),
               weight.stride(2),
               weight.stride(3)};
  return conv;
}

Path read_path(const Tensor& gradient, const std::vector<Tensor>& weights,
               const std::vector<Tensor>& masks) {
  check_cpu(gradient, ScalarType::Float, "path_bwd: gradient");
  check(gradient.dim() == 4, "path_bwd: gradient must have shape [N, C, H, W], but it has ",
        to_string(gradient.sizes()), '.');
  check(masks.size() == weights.size() + 1,
        "path_bwd: masks must hold one tensor more than weights, but they are ", masks.size(),
        " and ", weights.size(), '.');
  const int64_t channels = gradient.size(1), images = masks[0].dim() > 0 ? masks[0].size(0) : 0;
  Path path{{nullptr, gradient.size(2), gradient.size(3), blocks_of(channels)}, {}, {}, images};
  check(images > 0 && gradient.size(0) % images == 0,
        "path_bwd: gradient must hold the images of the masks, once or several times, but it has ",
        gradient.size(0), " and they have ", images, '.');
  for (const Tensor& mask : masks) {
    check_cpu(mask, ScalarType::Short, "path_bwd: a tensor of masks");
    check_shape(mask, {images, path.shape.blocks, path.shape.height, path.shape.width},
                "path_bwd: a tensor of masks");
    check(mask.is_contiguous(), "path_bwd: a tensor of masks must be contiguous.");
    path.masks.push_back(reinterpret_cast<const uint16_t*>(mask.const_data_ptr<int16_t>()));
  }
  for (const Tensor& weight : weights) path.convs.push_back(read_conv(weight, channels));
  return path;
}

// Packs all weights, on all threads.
Lent pack_weights(Path& path) {
  static Keeper keeper;
  const int64_t each = path.convs.empty() ? 0 : path.convs[0].weight_floats();
  Lent packed(keeper, path.convs.size() * each, "path_bwd: memory for the weights");
  const int64_t blocks = path.shape.blocks;
  torch::stable::parallel_for(
      0, path.convs.size() * blocks, 1, [&, data = packed.data()](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          eval_kernels().pack(path.convs[i / blocks], i % blocks, data + i / blocks * each);
      });
  for (size_t i = 0; i < path.convs.size(); ++i) path.convs[i].weights = packed.data() + i * each;
  return packed;
}

// One thread's memory: some images before and behind a convolution.
class Group {
 public:
  static int64_t workspace_floats(const Path& path) {
    return path.convs.empty() ? 0 : eval_kernels().workspace_floats(path.convs[0]);
  }
  static int64_t floats(const Path& path, int64_t images) {
    return 2 * images * round_up(path.shape.size(), kBlock) +
           round_up(workspace_floats(path), kBlock);
  }

  Group(const Path& path, int64_t images, float* memory) : path_(path), masks_(images) {
    for (std::vector<Image>* part : {&gradient_, &next_}) {
      part->resize(images);
      for (Image& image : *part) {
        image.data = memory, memory += round_up(path.shape.size(), kBlock);
        image.reshape(path.shape.height, path.shape.width, path.shape.blocks);
      }
    }
    workspace_ = memory;
  }

  const Image& image(int64_t i) const { return gradient_[i]; }

  // Takes `images` gradients back; the first of them is that of image `first`.
  void run(int64_t first, int64_t images) {
    find_masks(0, first, images);
    for (int64_t i = 0; i < images; ++i) eval_kernels().mask(gradient_[i], masks_[i]);
    for (size_t i = 0; i < path_.convs.size(); ++i) {
      find_masks(i + 1, first, images);
      eval_kernels().convolve_masked(path_.convs[i], gradient_.data(), next_.data(), images,
                                     masks_.data(), workspace_);
      std::swap(gradient_, next_);
    }
  }

 private:
  void find_masks(size_t at, int64_t first, int64_t images) {
    for (int64_t i = 0; i < images; ++i)
      masks_[i] = path_.masks[at] + (first + i) % path_.masked_images * path_.mask_words();
  }

  const Path& path_;
  std::vector<Image> gradient_, next_;
  std::vector<const uint16_t*> masks_;
  float* workspace_;
};

// Images that go through together: as many as keep two gradients of each in the second cache, but
// so few that every thread has work.
int64_t images_together(const Path& path, int64_t images) {
  constexpr int64_t kCache = 100 << 10;  // floats
  const int64_t each = std::max<int64_t>(1, kCache / (2 * path.shape.size()));
  const int64_t threads = torch::stable::get_num_threads();
  return divide_up(images, std::max(divide_up(images, each), std::min(images, threads)));
}

Tensor path_bwd_cpu(const Tensor& gradient, std::vector<Tensor> weights,
                    std::vector<Tensor> masks) {
  Path path = read_path(gradient, weights, masks);
  const int64_t images = gradient.size(0);
  const std::array<int64_t, 4> sizes = {images, gradient.size(1), gradient.size(2),
                                        gradient.size(3)};
  Tensor out = allocate_recycled(sizes, "path_bwd: the gradient", memory_format_of(gradient));
  if (images == 0) return out;
  const Lent packed = pack_weights(path);

  const int64_t together = images_together(path, images), count = divide_up(images, together);
  const int64_t workers = std::min<int64_t>(count, torch::stable::get_num_threads());
  const int64_t floats = Group::floats(path, together);
  static Keeper keeper;
  Lent memory(keeper, workers * floats, "path_bwd: scratch memory");
  const float* from = gradient.const_data_ptr<float>();
  float *to = out.mutable_data_ptr<float>(), *memory_data = memory.data();
  std::atomic<int64_t> next_group{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      Group group(path, together, memory_data + worker * floats);
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

}  // namespace
}  // namespace pathnet

STABLE_TORCH_LIBRARY_IMPL(pathnet, CPU, m) {
  m.impl("path_bwd", TORCH_BOX(&pathnet::path_bwd_cpu));
}
