// Folds batch norms into the convolutions and puts the weights into the order in which the kernels
// read them.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>

#include "stage_plan.h"

namespace pathnet {
namespace {

// y = u * scale + shift for one channel
struct Affine {
  double scale = 1.0;
  double shift = 0.0;
};

// A vector of channels with any stride.
struct Channels {
  explicit Channels(const Tensor& tensor)
      : data(tensor.const_data_ptr<float>()), stride(tensor.stride(0)) {}
  double operator[](int64_t c) const { return data[c * stride]; }
  const float* data;
  int64_t stride;
};

// y = (u - mean) / sqrt(var + eps) * weight + bias
std::vector<Affine> fold(const Norm& norm) {
  const Channels weight(norm.weight), bias(norm.bias), mean(norm.mean), var(norm.var);
  std::vector<Affine> result(norm.weight.size(0));
  for (int64_t c = 0; c < static_cast<int64_t>(result.size()); ++c) {
    const double scale = weight[c] / std::sqrt(var[c] + norm.eps);
    result[c] = {scale, bias[c] - mean[c] * scale};
  }
  return result;
}

// [out, in, kernel, kernel] -> [out / 16, kernel, kernel, in, 16]; channels that only fill a block
// get zeros
void pack_conv(const ConvNorm& step, float* weights, float* bias) {
  const Conv& conv = step.conv;
  const int64_t out_channels = step.weight.size(0), in_channels = step.weight.size(1),
                kernel = conv.kernel;
  const int64_t out_stride = step.weight.stride(0), in_stride = step.weight.stride(1);
  const int64_t row_stride = step.weight.stride(2), column_stride = step.weight.stride(3);
  const float* source = step.weight.const_data_ptr<float>();
  const std::vector<Affine> folded =
      step.has_norm ? fold(step.norm) : std::vector<Affine>(out_channels);
  if (out_channels != conv.out_channels || in_channels != conv.in_channels)
    std::fill(weights, weights + conv.taps() * conv.out_channels, 0.0f);
  std::fill(bias, bias + conv.out_channels, 0.0f);
  for (int64_t o = 0; o < out_channels; ++o) {
    const double scale = folded[o].scale;
    bias[o] = static_cast<float>(folded[o].shift);
    float* packed = weights + o / kBlock * conv.taps() * kBlock + o % kBlock;
    for (int64_t c = 0; c < in_channels; ++c)
      for (int64_t i = 0; i < kernel; ++i)
        for (int64_t j = 0; j < kernel; ++j)
          packed[((i * kernel + j) * conv.in_channels + c) * kBlock] = static_cast<float>(
              source[o * out_stride + c * in_stride + i * row_stride + j * column_stride] * scale);
  }
}

void pack_affine(const Norm& norm, int64_t padded, float* scale, float* shift) {
  std::fill(scale, scale + padded, 0.0f);
  std::fill(shift, shift + padded, 0.0f);
  const std::vector<Affine> folded = fold(norm);
  for (size_t c = 0; c < folded.size(); ++c) {
    scale[c] = static_cast<float>(folded[c].scale);
    shift[c] = static_cast<float>(folded[c].shift);
  }
}

}  // namespace

void pack(Plan& plan) {
  std::vector<ConvNorm*> convs;
  std::vector<Block*> norms;
  int64_t total = 0;
  for (Block& block : plan.blocks) {
    if (block.shortcut == Shortcut::kConv) convs.push_back(&block.projection);
    if (!block.runs) continue;
    for (ConvNorm& step : block.branch) convs.push_back(&step);
    if (block.form == Form::kPreact) norms.push_back(&block);
  }
  for (const ConvNorm* step : convs) total += (step->conv.taps() + 1) * step->conv.out_channels;
  for (const Block* block : norms) total += 2 * round_up_to_block(block->in.channels);
  plan.packed = allocate({total}, "stage_eval: memory for the weights");

  float* free = plan.packed.mutable_data_ptr<float>();
  for (ConvNorm* step : convs) {
    Conv& conv = step->conv;
    conv.weights = free;
    conv.bias = free + conv.taps() * conv.out_channels;
    free += (conv.taps() + 1) * conv.out_channels;
  }
  for (Block* block : norms) {
    const int64_t padded = round_up_to_block(block->in.channels);
    block->first_scale = free;
    block->first_shift = free + padded;
    pack_affine(block->first_norm, padded, free, free + padded);
    free += 2 * padded;
  }
  torch::stable::parallel_for(0, convs.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      pack_conv(*convs[i], const_cast<float*>(convs[i]->conv.weights),
                const_cast<float*>(convs[i]->conv.bias));
  });
}

}  // namespace pathnet
