// stage_train_bwd: the path-restricted backward of stage_train_fwd.
//
// From the last block to the first, a pass over the batch a convolution (stage_train_bwd.h).
// FORWARD blocks take part in nothing but the bits that cut the gradient on the shortcut.
#include "stage_train_bwd.h"

#include <torch/csrc/stable/library.h>

namespace pathnet::train {
namespace {

std::vector<Tensor> stage_train_bwd_cpu(const Tensor& grad_y, const Tensor& x,
                                        std::optional<Tensor> rows, std::vector<Tensor> saved,
                                        std::vector<Tensor> weights, std::vector<Tensor> norms,
                                        std::vector<Tensor> running, std::vector<int64_t> blocks,
                                        std::vector<double> scales, std::vector<bool> norm_flags,
                                        std::vector<double> norm_constants, bool has_skip,
                                        std::vector<bool> needs) {
  const Plan plan = read_plan(
      "stage_train_bwd",
      {x, rows, weights, norms, running, blocks, scales, norm_flags, norm_constants}, has_skip);
  check_cpu(grad_y, ScalarType::Float, "stage_train_bwd: grad_y");
  check_shape(grad_y, {x.size(0), plan.out_channels(), plan.out().height, plan.out().width},
              "stage_train_bwd: grad_y");
  const Kept kept = from_list(plan, saved);
  Gradients gradients(needs, plan);
  const BackwardCall call{plan, kept, has_skip, x, grad_y, gradients};
  plan.preact() ? backward_preact(call) : backward_post(call);
  return gradients.list();
}

}  // namespace
}  // namespace pathnet::train

STABLE_TORCH_LIBRARY_IMPL(pathnet, CPU, m) {
  m.impl("stage_train_bwd", TORCH_BOX(&pathnet::train::stage_train_bwd_cpu));
}
