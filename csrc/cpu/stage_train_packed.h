#pragma once
// Weights of convolutions as the products of a pass read them.
#include "stage_train_batch.h"

namespace pathnet::train {

// Calls visit(phase, taps) for the one convolution of stride 1, or for the four phases of stride 2.
template <typename Visit>
void for_phases(int64_t stride, const Visit& visit) {
  if (stride == 1) return visit(0, kPlainTaps);
  for (int i = 0; i < 4; ++i) visit(i, phase_taps(kPhases[i].row, kPhases[i].column));
}

// The largest of the plan's convolutions, packed: in floats.
int64_t packed_floats(const Plan& plan);

// The weights of one convolution: of the forward, or of the backward, which takes output channels
// in and gives input channels. Those of a 3x3 convolution stand in the Winograd domain.
class PackedWeights {
 public:
  PackedWeights(const Plan& plan);
  const float* forward(const Conv& conv);
  const float* backward(const Conv& conv);

 private:
  void pack(const WeightView& weights);
  void transform(const WeightView& weights, const Taps& taps, const Placement& place);

  Tensor memory_;
};

}  // namespace pathnet::train
