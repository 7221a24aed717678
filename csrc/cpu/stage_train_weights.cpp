#include "stage_train_weights.h"

#include "recycled.h"

namespace pathnet::train {
namespace {

int64_t in_channels(const BackwardConv& pass) {
  return pass.stride * pass.stride * pass.in_extent.channels();
}
int64_t part_floats(const BackwardConv& pass) {
  return 9 * in_channels(pass) * pass.out_extent.channels();
}

}  // namespace

WeightGradients::WeightGradients(const Plan& plan)
    : op_(plan.op),
      parts_(allocate_recycled({Chunks::kMost, weight_floats(plan) / 4},
                               std::string(plan.op) + ": parts of a weight gradient")) {}

float* WeightGradients::part(int64_t chunk, const BackwardConv& pass) const {
  return data(parts_) + chunk * part_floats(pass);
}

Tensor WeightGradients::merge(const Tensor& weight, const BackwardConv& pass,
                              int64_t chunks) const {
  Tensor gradient = torch::stable::empty_like(weight);
  const int64_t in = in_channels(pass), out = pass.out_extent.channels();
  const int64_t channels = weight.size(0), weight_in = weight.size(1),
                part_stride = part_floats(pass);
  const int64_t strides[4] = {gradient.stride(0), gradient.stride(1), gradient.stride(2),
                              gradient.stride(3)};
  const float* parts = data(parts_);
  float* gradient_data = data(gradient);
  const auto add_up = [&](int64_t first, int64_t c) {  // for 16 output channels
    const int64_t count = std::min(kBlock, channels - first);
    for_phases(pass.stride, [&](int64_t phase, const Taps& taps) {
      for (int64_t place = 0; place < 9; ++place) {
        if (taps[place] < 0) continue;
        const float* part =
            parts + (place * in + phase * pass.in_extent.channels() + c) * out + first;
        float sum[kBlock] = {};
        for (int64_t chunk = 0; chunk < chunks; ++chunk, part += part_stride)
          for (int64_t k = 0; k < kBlock; ++k) sum[k] += part[k];
        float* to = gradient_data + first * strides[0] + c * strides[1] +
                    taps[place] / 3 * strides[2] + taps[place] % 3 * strides[3];
        for (int64_t k = 0; k < count; ++k) to[k * strides[0]] = sum[k];
      }
    });
  };
  torch::stable::parallel_for(0, divide_up(channels, kBlock), 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      for (int64_t c = 0; c < weight_in; ++c) add_up(block * kBlock, c);
  });
  return gradient;
}

}  // namespace pathnet::train
