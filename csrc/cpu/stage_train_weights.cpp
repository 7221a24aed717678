#include "stage_train_weights.h"

#include "recycled.h"
#include "stage_train_packed.h"

namespace pathnet::train {
namespace {

// Of a 3x3 convolution of stride 2, those of all four phases.
int64_t in_channels(const Conv& conv) {
  return (conv.kernel == 1 ? 1 : conv.stride * conv.stride) * conv.in.channels();
}

int64_t part_floats(const Conv& conv) {
  return conv.kernel * conv.kernel * in_channels(conv) * conv.out.channels();
}

int64_t floats_of_parts(const Plan& plan) {
  return plan.most(
      [&](const Conv& conv) { return Chunks(plan.images, conv.out).count * part_floats(conv); });
}

// A gradient [out, in, kernel, kernel] and the parts that it is the sum of, each
// [taps, in channels, out channels].
struct Parts {
  const float* first;
  int64_t count, floats;
  int64_t in, out;  // channels of a part: whole blocks

  // Adds up 16 output channels, from k on, of an input channel at a place of the kernel.
  void add_up(int64_t place, int64_t c, int64_t k, float sum[kBlock]) const {
    const float* part = first + (place * in + c) * out + k;
    std::fill_n(sum, kBlock, 0.0f);
    for (int64_t chunk = 0; chunk < count; ++chunk, part += floats)
      for (int64_t i = 0; i < kBlock; ++i) sum[i] += part[i];
  }
};

// The places of the kernel with their taps, phase by phase.
template <typename Visit>
void for_places(const Conv& conv, const Visit& visit) {
  if (conv.kernel == 1) return visit(0, 0, 0);
  for_phases(conv.stride, [&](int64_t phase, const Taps& taps) {
    for (int64_t place = 0; place < 9; ++place)
      if (taps[place] >= 0) visit(phase, place, taps[place]);
  });
}

}  // namespace

WeightGradients::WeightGradients(const Plan& plan)
    : parts_(allocate_recycled({floats_of_parts(plan)},
                               std::string(plan.op) + ": parts of a weight gradient")) {}

int64_t WeightGradients::own_floats(const Plan& plan) { return packed_floats(plan); }

float* WeightGradients::part(const Conv& conv, int64_t chunk) const {
  return data(parts_) + chunk * part_floats(conv);
}

float* WeightGradients::sums(const Conv& conv, int64_t chunk, float* own) const {
  return conv.kernel == 1 ? part(conv, chunk) : own;
}

void WeightGradients::finish(const Conv& conv, int64_t chunk, const float* sums) const {
  if (conv.kernel == 1) return;
  train_kernels().finish_weight_gradient(sums, in_channels(conv), conv.out.channels(),
                                         part(conv, chunk));
}

Tensor WeightGradients::merge(const Conv& conv, int64_t chunks) const {
  Tensor gradient = torch::stable::empty_like(conv.weight);
  const Parts parts{data(parts_), chunks, part_floats(conv), in_channels(conv),
                    conv.out.channels()};
  const int64_t channels = gradient.size(0), weight_in = gradient.size(1);
  const int64_t strides[4] = {gradient.stride(0), gradient.stride(1), gradient.stride(2),
                              gradient.stride(3)};
  const int64_t taps = conv.kernel * conv.kernel;
  // 16 output channels of 16 input channels: [in][tap][out] as they are added up, then written one
  // output channel after the other, which stand together in the gradient.
  const auto merge_block = [&](int64_t k, int64_t c) {
    float sums[kBlock][9][kBlock];
    const int64_t inputs = std::min(kBlock, weight_in - c),
                  outputs = std::min(kBlock, channels - k);
    for_places(conv, [&](int64_t phase, int64_t place, int64_t tap) {
      for (int64_t i = 0; i < inputs; ++i)
        parts.add_up(place, phase * conv.in.channels() + c + i, k, sums[i][tap]);
    });
    float* to = data(gradient) + k * strides[0] + c * strides[1];
    for (int64_t o = 0; o < outputs; ++o, to += strides[0])
      for (int64_t i = 0; i < inputs; ++i)
        for (int64_t tap = 0; tap < taps; ++tap)
          to[i * strides[1] + tap / 3 * strides[2] + tap % 3 * strides[3]] = sums[i][tap][o];
  };
  torch::stable::parallel_for(0, divide_up(channels, kBlock), 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      for (int64_t c = 0; c < weight_in; c += kBlock) merge_block(block * kBlock, c);
  });
  return gradient;
}

}  // namespace pathnet::train
