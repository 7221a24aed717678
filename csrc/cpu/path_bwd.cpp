// path_bwd: a gradient back along one path, through the branches that the path takes.
//
// With its norms folded into the weights a branch is two convolutions, each followed by the mask of
// a ReLU; the blocks around which the path goes are masks alone, ANDed before the call.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "path_walk.h"

namespace pathnet {
namespace {

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

Walk read_path(const Tensor& gradient, const std::vector<Tensor>& weights,
               const std::vector<Tensor>& masks) {
  check_cpu(gradient, ScalarType::Float, "path_bwd: gradient");
  check(gradient.dim() == 4, "path_bwd: gradient must have shape [N, C, H, W], but it has ",
        to_string(gradient.sizes()), '.');
  check(masks.size() == weights.size() + 1,
        "path_bwd: masks must hold one tensor more than weights, but they are ", masks.size(),
        " and ", weights.size(), '.');
  const int64_t channels = gradient.size(1), images = masks[0].dim() > 0 ? masks[0].size(0) : 0;
  Walk path;
  path.shape = {nullptr, gradient.size(2), gradient.size(3), blocks_of(channels)};
  path.masked_images = images;
  check(images > 0 && gradient.size(0) % images == 0,
        "path_bwd: gradient must hold the images of the masks, once or several times, but it has ",
        gradient.size(0), " and they have ", images, '.');
  const auto read_mask = [&](const Tensor& mask) {
    check_cpu(mask, ScalarType::Short, "path_bwd: a tensor of masks");
    check_shape(mask, {images, path.shape.blocks, path.shape.height, path.shape.width},
                "path_bwd: a tensor of masks");
    check(mask.is_contiguous(), "path_bwd: a tensor of masks must be contiguous.");
    return reinterpret_cast<const uint16_t*>(mask.const_data_ptr<int16_t>());
  };
  path.mask = read_mask(masks[0]);
  for (size_t i = 0; i < weights.size(); ++i)
    path.steps.push_back(
        {read_conv(weights[i], channels), read_mask(masks[i + 1]), Walk::Way::kOn});
  return path;
}

Tensor path_bwd_cpu(const Tensor& gradient, std::vector<Tensor> weights,
                    std::vector<Tensor> masks) {
  Walk path = read_path(gradient, weights, masks);
  return walk_back("path_bwd", path, gradient);
}

}  // namespace
}  // namespace pathnet

STABLE_TORCH_LIBRARY_IMPL(pathnet, CPU, m) {
  m.impl("path_bwd", TORCH_BOX(&pathnet::path_bwd_cpu));
}
