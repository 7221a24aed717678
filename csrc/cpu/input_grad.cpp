// input_grad_fwd, input_grad_bwd: blocks in evaluation whose input alone gets a gradient.
//
// With running statistics an image needs no other one, in both directions: so both go depth-first,
// and all that stays between them is one bit for each value behind a ReLU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <vector>

#include "kept.h"
#include "path_walk.h"
#include "stage_eval.h"
#include "stage_pack.h"

namespace pathnet {
namespace {

// Blocks of two 3x3 convolutions that keep the shape, around which the identity leads.
Plan read_blocks(const char* op, const Tensor& x, const std::vector<Tensor>& tensors,
                 const std::vector<int64_t>& blocks, const std::vector<double>& eps) {
  Plan plan = read_plan(x, tensors, blocks, eps);
  check(!plan.blocks.empty(), op, ": blocks must hold at least one block.");
  plan.kernels = &eval_kernels();
  const auto fits = [&](const ConvNorm& step) {
    const Conv& conv = step.conv;
    return conv.kernel == 3 && conv.stride == 1 && conv.in_channels == plan.in.channels &&
           conv.out_channels == plan.in.channels;
  };
  for (Block& block : plan.blocks) {
    const bool two = block.form == Form::kBasic || block.form == Form::kPreact;
    check(two && block.shortcut == Shortcut::kIdentity && block.form == plan.blocks[0].form &&
              std::all_of(block.branch.begin(), block.branch.end(), fits),
          op,
          ": blocks must be basic ones or pre-activation ones, all of one form, with an identity "
          "shortcut and 3x3 convolutions of stride 1 from and to the channels of x.");
    block.runs = true;
  }
  return plan;
}

int64_t mask_words(const Plan& plan) {
  return blocks_of(plan.in.channels) * plan.in.height * plan.in.width;
}

std::tuple<Tensor, Tensor> input_grad_fwd_cpu(const Tensor& x, const Tensor& scales,
                                              std::vector<Tensor> tensors,
                                              std::vector<int64_t> blocks,
                                              std::vector<double> eps) {
  Plan plan = read_blocks("input_grad_fwd", x, tensors, blocks, eps);
  const int64_t images = x.size(0), count = plan.blocks.size();
  const std::array<int64_t, 5> sizes = {2 * count, images, blocks_of(plan.in.channels),
                                        plan.in.height, plan.in.width};
  Tensor masks = torch::stable::new_empty(x, sizes, ScalarType::Short);
  plan.bits = {reinterpret_cast<uint16_t*>(masks.mutable_data_ptr<int16_t>()), images,
               mask_words(plan)};
  Tensor gates = torch::stable::new_empty(x, {count}, ScalarType::Char);
  std::fill_n(gates.mutable_data_ptr<int8_t>(), count, int8_t{1});
  const Switches switches(gates, scales, images, count);
  Tensor y = evaluate(plan, switches, x);
  return {y, masks};
}

// The weights [in, out, 3, 3] that pull a gradient back: turned, with factors of both sides.
void turn(const WeightView& weight, const float* out_factor, float multiplier,
          const float* in_factor, float* turned) {
  for (int64_t i = 0; i < weight.in; ++i)
    for (int64_t o = 0; o < weight.out; ++o) {
      const float factor =
          multiplier * out_factor[o] * (in_factor == nullptr ? 1.0f : in_factor[i]);
      const float* from = weight.data + o * weight.out_stride + i * weight.in_stride;
      for (int64_t tap = 8; tap >= 0; --tap)
        *turned++ = factor * from[tap / 3 * weight.row_stride + tap % 3 * weight.column_stride];
    }
}

// A gradient back through all blocks, whose weights are turned into `turned`.
Walk walk_of(const Plan& plan, const uint16_t* masks, const float* scales, int64_t images,
             float* turned) {
  using Way = Walk::Way;
  const int64_t channels = plan.in.channels, floats = 9 * channels * channels;
  const int64_t words = images * mask_words(plan), count = plan.blocks.size();
  const bool preact = plan.blocks[0].form == Form::kPreact;
  const auto mask = [&](int64_t block, int64_t relu) { return masks + (2 * block + relu) * words; };
  Walk walk;
  walk.shape = {nullptr, plan.in.height, plan.in.width, blocks_of(channels)};
  walk.masked_images = images;
  if (!preact) walk.mask = mask(count - 1, 1);
  for (int64_t b = count - 1; b >= 0; --b) {
    const Block& block = plan.blocks[b];
    const Conv &first = block.branch[0].conv, &last = block.branch[1].conv;
    turn(last.view, last.scale, scales[b], nullptr, turned + 2 * b * floats);
    turn(first.view, first.scale, 1.0f, block.first_scale, turned + (2 * b + 1) * floats);
    const auto step = [&](int64_t conv, const uint16_t* cut, Way way) {
      Conv pull;
      pull.in_channels = pull.out_channels = channels, pull.kernel = 3;
      pull.view = {turned + (2 * b + conv) * floats, channels, channels, 9 * channels, 9, 3, 1};
      walk.steps.push_back({pull, cut, way});
    };
    step(0, mask(b, preact), Way::kAside);
    if (preact)
      step(1, mask(b, 0), Way::kBackCut);
    else
      step(1, b > 0 ? mask(b - 1, 1) : nullptr, Way::kBackWhole);
  }
  return walk;
}

std::vector<Tensor> input_grad_bwd_cpu(const Tensor& gradient, const Tensor& masks,
                                       const Tensor& scales, std::vector<Tensor> tensors,
                                       std::vector<int64_t> blocks, std::vector<double> eps) {
  Plan plan = read_blocks("input_grad_bwd", gradient, tensors, blocks, eps);
  const int64_t count = plan.blocks.size(), images = masks.dim() == 5 ? masks.size(1) : 0;
  check(images > 0 && gradient.size(0) % images == 0,
        "input_grad_bwd: the gradient must hold the images of the masks, once or several times, "
        "but it has ",
        gradient.size(0), " and they have ", images, '.');
  check_cpu(masks, ScalarType::Short, "input_grad_bwd: masks");
  check_shape(masks,
              {2 * count, images, blocks_of(plan.in.channels), plan.in.height, plan.in.width},
              "input_grad_bwd: masks");
  check(masks.is_contiguous(), "input_grad_bwd: masks must be contiguous.");
  check_cpu(scales, ScalarType::Float, "input_grad_bwd: scales");
  check_shape(scales, {count}, "input_grad_bwd: scales");
  check(scales.is_contiguous(), "input_grad_bwd: scales must be contiguous.");
  fold_norms(plan);
  static Keeper keeper;
  Lent turned(keeper, 2 * count * 9 * plan.in.channels * plan.in.channels,
              "input_grad_bwd: memory for turned weights");
  Walk walk = walk_of(plan, reinterpret_cast<const uint16_t*>(masks.const_data_ptr<int16_t>()),
                      scales.const_data_ptr<float>(), images, turned.data());
  return {walk_back("input_grad_bwd", walk, gradient)};
}

}  // namespace
}  // namespace pathnet

STABLE_TORCH_LIBRARY_IMPL(pathnet, CPU, m) {
  m.impl("input_grad_fwd", TORCH_BOX(&pathnet::input_grad_fwd_cpu));
  m.impl("input_grad_bwd", TORCH_BOX(&pathnet::input_grad_bwd_cpu));
}
