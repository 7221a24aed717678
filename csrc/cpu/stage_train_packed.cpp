#include "stage_train_packed.h"

#include "recycled.h"

namespace pathnet::train {
namespace {

int64_t floats_of(const Conv& conv) {
  if (conv.kernel == 1) return conv.in.channels() * conv.out.channels();
  return transformed_floats(conv.stride * conv.stride * conv.in.blocks, conv.out.blocks);
}

WeightView view(const Tensor& weight) {
  return {data(weight),     weight.size(0),   weight.size(1),  weight.stride(0),
          weight.stride(1), weight.stride(2), weight.stride(3)};
}

template <typename Pack>
void for_blocks(const WeightView& w, const Pack& pack) {
  torch::stable::parallel_for(0, blocks_of(w.out), 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) pack(block);
  });
}

}  // namespace

int64_t packed_floats(const Plan& plan) { return plan.most(floats_of); }

PackedWeights::PackedWeights(const Plan& plan)
    : memory_(allocate_recycled({packed_floats(plan)}, std::string(plan.op) + ": packed weights")) {
}

void PackedWeights::pack(const WeightView& w) {
  for_blocks(w,
             [&](int64_t block) { train_kernels().pack_pixel_weights(w, block, data(memory_)); });
}

void PackedWeights::transform(const WeightView& w, const Taps& taps, const Placement& place) {
  for_blocks(w, [&](int64_t block) {
    train_kernels().transform_weight_block(w, taps, place, block, data(memory_));
  });
}

const float* PackedWeights::forward(const Conv& conv) {
  const WeightView w = view(conv.weight);
  const int64_t in = blocks_of(w.in), out = blocks_of(w.out);
  if (conv.kernel == 1)
    pack(w);
  else
    for_phases(conv.stride, [&](int64_t phase, const Taps& taps) {
      transform(w, taps, {phase * in, conv.stride * conv.stride * in, 0, out});
    });
  return data(memory_);
}

const float* PackedWeights::backward(const Conv& conv) {
  WeightView w = view(conv.weight);
  std::swap(w.in, w.out);
  std::swap(w.in_stride, w.out_stride);
  const int64_t in = blocks_of(w.in), out = blocks_of(w.out);
  if (conv.kernel == 1)
    pack(w);
  else
    for_phases(conv.stride, [&](int64_t phase, const Taps& taps) {
      transform(w, rotated(taps), {0, in, phase * out, conv.stride * conv.stride * out});
    });
  return data(memory_);
}

}  // namespace pathnet::train
