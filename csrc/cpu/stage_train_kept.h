#pragma once
// What the forward of a run of blocks keeps for its backward, in the order in which it stands in
// the op's list `saved`. A batch stands there blocked (train_kernels.h).
#include "stage_train_batch.h"
#include "stage_train_norm.h"

namespace pathnet::train {

struct KeptBlock {
  // FORWARD blocks keep none of these. The block's input x: what conv1's weight gradient reads, and
  // a pre-activation block's first norm. u[i]: the output of convs[i], which the norm behind it
  // reads; there is none behind the last one of a pre-activation block.
  Batch x;
  std::vector<Batch> u;
  Batch alive;  // where the run from this block's value on to the next kept block lives
};

struct Kept {
  Tensor norms;    // [norms of trained blocks, NormState::kRows, widest norm]
  Tensor passing;  // the same for the FORWARD block at hand, and for a projection: not kept
  Batch alive;     // of the FORWARD run that comes first, if one does
  std::vector<KeptBlock> blocks;  // a branch each; a projection reads the first block's x
};

bool keeps_x(const Plan& plan, int64_t block);
int64_t kept_outputs(const Block& block);  // u[0] ...
NormState norm_state(const Plan& plan, const Kept& kept, int64_t block, int64_t norm);

Kept new_kept(const Plan& plan);
std::vector<Tensor> to_list(const Plan& plan, const Kept& kept);
Kept from_list(const Plan& plan, const std::vector<Tensor>& saved);

}  // namespace pathnet::train
