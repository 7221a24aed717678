#include "stage_pack.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>

namespace pathnet {
namespace {

// (u - mean) / sqrt(var + eps) * weight + bias = u * scale + shift
void fold(const Norm& norm, float* scale, float* shift) {
  for (int64_t c = 0; c < norm.channels; ++c) {
    const double factor = norm.weight[c] / std::sqrt(norm.var[c] + norm.eps);
    scale[c] = static_cast<float>(factor);
    shift[c] = static_cast<float>(norm.bias[c] - norm.mean[c] * factor);
  }
}

}  // namespace

void fold_norms(Plan& plan) {
  int64_t total = 0;
  const auto room = [](int64_t channels) { return 2 * round_up(channels, kBlock); };
  plan.for_convs([&](const ConvNorm& step) { total += room(step.conv.out_channels); });
  for (const Block& block : plan.blocks) total += room(block.in.channels);
  plan.constants = allocate({total}, "stage_eval: memory for batch norms");
  float* free = plan.constants.mutable_data_ptr<float>();
  std::fill(free, free + total, 0.0f);

  plan.for_convs([&](ConvNorm& step) {
    float *scale = free, *shift = free + room(step.conv.out_channels) / 2;
    free += room(step.conv.out_channels);
    step.conv.scale = scale, step.conv.bias = shift;
    if (step.has_norm)
      fold(step.norm, scale, shift);
    else
      std::fill(scale, shift, 1.0f);
  });
  for (Block& block : plan.blocks) {
    if (block.form != Form::kPreact || !block.runs) continue;
    block.first_scale = free;
    block.first_shift = free + room(block.in.channels) / 2;
    fold(block.first_norm, free, free + room(block.in.channels) / 2);
    free += room(block.in.channels);
  }
}

void pack(const EvalKernels& kernels, const Conv& conv, float* packed) {
  for (int64_t block = 0; block < conv.out_blocks(); ++block) kernels.pack(conv, block, packed);
}

void pack_weights(Plan& plan) {
  struct Part {
    const ConvNorm* step;
    int64_t block;
    float* packed;
  };
  int64_t total = 0;
  plan.for_convs([&](const ConvNorm& step) { total += step.conv.weight_floats(); });
  static Keeper keeper;
  float* free = plan.packed.emplace(keeper, total, "stage_eval: memory for the weights").data();
  std::vector<Part> parts;
  plan.for_convs([&](ConvNorm& step) {
    for (int64_t block = 0; block < step.conv.out_blocks(); ++block)
      parts.push_back({&step, block, free});
    step.conv.weights = free;
    free += step.conv.weight_floats();
  });
  torch::stable::parallel_for(0, parts.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      plan.kernels->pack(parts[i].step->conv, parts[i].block, parts[i].packed);
  });
}

}  // namespace pathnet
