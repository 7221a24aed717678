#include "stage_train_weights.h"

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
      parts_(allocate({Chunks::kMost, weight_floats(plan) / 4},
                      std::string(plan.op) + ": parts of a weight gradient")) {}

float* WeightGradients::part(int64_t chunk, const BackwardConv& pass) const {
  return data(parts_) + chunk * part_floats(pass);
}

Tensor WeightGradients::merge(const Tensor& weight, const BackwardConv& pass,
                              int64_t chunks) const {
  Tensor gradient = torch::stable::empty_like(weight);
  const int64_t in = in_channels(pass), out = pass.out_extent.channels();
  const int64_t channels = weight.size(0), part_stride = part_floats(pass);
  const int64_t strides[4] = {gradient.stride(0), gradient.stride(1), gradient.stride(2),
                              gradient.stride(3)};
  const float* parts = data(parts_);
  float* gradient_data = data(gradient);
  torch::stable::parallel_for(0, weight.size(1), 4, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(out);
    for (int64_t c = begin; c < end; ++c)
      for_phases(pass.stride, [&](int64_t phase, const Taps& taps) {
        for (int64_t place = 0; place < 9; ++place) {
          if (taps[place] < 0) continue;
          const float* row = parts + (place * in + phase * pass.in_extent.channels() + c) * out;
          std::fill(sum.begin(), sum.end(), 0.0f);
          for (int64_t chunk = 0; chunk < chunks; ++chunk)
            for (int64_t k = 0; k < out; ++k) sum[k] += row[chunk * part_stride + k];
          float* to = gradient_data + c * strides[1] + taps[place] / 3 * strides[2] +
                      taps[place] % 3 * strides[3];
          for (int64_t k = 0; k < channels; ++k) to[k * strides[0]] = sum[k];
        }
      });
  });
  return gradient;
}

}  // namespace pathnet::train
