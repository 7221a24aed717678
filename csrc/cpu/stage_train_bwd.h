#pragma once
// The backward through a run of blocks, from the last one to the first: the walks over both kinds
// of blocks, and the passes that they share.
#include "stage_train_gradients.h"
#include "stage_train_kept.h"
#include "stage_train_packed.h"
#include "stage_train_weights.h"

namespace pathnet::train {

struct BackwardCall {
  const Plan& plan;
  const Kept& kept;
  bool has_skip;
  const Tensor& x;  // tells shape and memory format
  const Tensor& grad_y;
  Gradients& gradients;
};

void backward_post(const BackwardCall& call);
void backward_preact(const BackwardCall& call);

// A pass over the batch a convolution: each reads the gradient of its output through the backward
// of the batch norm behind it, and gives the gradients of the weights and of the input, masked by
// the ReLU before, with the sums that the next batch norm's backward needs.
class BackwardPasses {
 protected:
  explicit BackwardPasses(const BackwardCall& call);

  // Takes g, the gradient behind the norm of convs[conv]'s output, back to that of convs[0]'s, and
  // returns the pass over convs[0], which is left to do. `norm` is the backward of g's norm.
  BackwardConv descend(int64_t b, int64_t conv, Batch& g, NormBackward& norm);

  // The pass over convs[conv], conv > 0: the gradient behind the norm that it reads through.
  Batch through(BackwardConv& pass, int64_t b, int64_t conv);

  // The gradient that the pass gives is cut where ReLU(norm(value)) is zero.
  Batch mask(BackwardConv& pass, const float* value, const NormState& norm);

  // Runs a pass, where anything is asked of it.
  void convolve(BackwardConv& pass, int64_t b, int64_t conv);

  // The backward of a norm, whose output was multiplied by s of each image; null: 1.
  NormBackward finish(int64_t b, int64_t norm, const float* multipliers = nullptr);
  NormState state(int64_t b, int64_t norm) const { return norm_state(plan_, kept_, b, norm); }

  // Takes the gradient of a projection's output back: those of its weights, and that of x, which is
  // added to `through_f`, or is all that x gets.
  void project(const NormGradient& gradient, Batch& through_f);
  bool projects_back() const;  // whether anything of it is asked for

  void write_x(const Batch& gradient, const uint16_t* alive);
  void write_skip(const Batch& gradient, const uint16_t* alive);

  const Plan& plan_;
  const Kept& kept_;
  bool other_shortcut_;  // of the first block than the identity: x has its gradient through f apart
  const Tensor &x_, &grad_y_;
  Gradients& gradients_;
  Pool pool_;  // before those who hold its batches
  Workers workers_;
  Tensor sums_;
  std::vector<int64_t> trained_;  // the blocks whose f passes a gradient
  Batch g_;                       // the gradient at hand

 private:
  Batch zeros(const Extent& extent);
  void run_chunk(BackwardConv pass, const Conv& conv, const Chunks& chunks, int64_t chunk,
                 float* workspace);

  PackedWeights weights_;
  WeightGradients weight_gradients_;
};

}  // namespace pathnet::train
