// stage_train_fwd: a run of gated residual blocks in training.
//
// Breadth-first, since batch statistics need the whole batch: one pass over it a convolution. A
// post-activation block's value is merged where the next block reads it; a pre-activation block's
// is written by its own second convolution. What only FORWARD blocks need is overwritten by later
// ones.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "layout.h"
#include "stage_train_batch.h"
#include "stage_train_kept.h"

namespace pathnet::train {
namespace {

class Forward {
 public:
  Forward(const Plan& plan, const Tensor& x, const std::optional<Tensor>& skip)
      : plan_(plan),
        pool_(plan.op, plan.images),
        kept_(new_kept(plan)),
        workers_(plan.op, workspace_floats(plan)),
        transformed_(plan.op, weight_floats(plan)),
        sums_(allocate({plan.images, kSums, widest(plan)}, std::string(plan.op) + ": sums")) {
    x_ = read(x, plan.in());
    if (skip.has_value()) skip_ = read(*skip, plan.blocks[0].out);
  }

  void run() {
    for (size_t b = 0; b < plan_.blocks.size(); ++b) plan_.preact() ? run_preact(b) : run_post(b);
    if (!plan_.preact()) merge_last();
  }
  void write(const Tensor& y) const { from_batch(data(x_), plan_.out(), nullptr, y); }
  std::vector<Tensor> saved() const { return to_list(plan_, kept_); }

 private:
  // x_b -> conv1, norm, ReLU -> conv2, whose output waits to be merged with the shortcut.
  void run_post(int64_t b) {
    const Block& block = plan_.blocks[b];
    ForwardConv pass = pass_of<ForwardConv>(block, 0);
    Batch merged;
    if (b == 0)
      pass.in = data(x_);
    else
      merged = merge_into(pass, b - 1);
    const Batch u1 = convolve(pass, block.weights[0], block.norms[0]);
    if (merged != nullptr) x_ = merged;
    finish(b, 0);
    pass = pass_of<ForwardConv>(block, 1);
    pass.in = data(u1);
    pass.before = state(b, 0).activation();
    branch_ = convolve(pass, block.weights[1], block.norms[1]);
    finish(b, 1);
    keep(b, u1);
    if (block.trained()) kept_.blocks[b].u[1] = branch_;
    if (b > 0 || skip_ == nullptr) skip_ = x_;
  }

  // Lets the pass read ReLU(s * norm(branch) + skip), the value of block b, and returns it.
  Batch merge_into(ForwardConv& pass, int64_t b) {
    const Block& block = plan_.blocks[b];
    const NormState norm = state(b, 1);
    scale_.assign(block.out.blocks, {}), shift_.assign(block.out.blocks, {});
    for (int64_t c = 0; c < block.out.channels(); ++c) {
      scale_[0].of[c] = block.scale * norm.scale[c];
      shift_[0].of[c] = block.scale * norm.shift[c];
    }
    if (block.trained()) alive_ = &kept_.blocks[b].alive;
    pass.alive_is_set = *alive_ != nullptr;
    if (*alive_ == nullptr) *alive_ = new_bits(plan_.op, plan_.images, block.out);
    const Batch merged = pool_.take(block.out);
    pass.in = data(branch_);
    pass.before = {scale_[0].of, shift_[0].of};
    pass.skip = data(skip_);
    pass.merged = data(merged);
    pass.alive = bits(*alive_);
    return merged;
  }

  void merge_last() {
    ForwardConv pass;
    pass.in_extent = plan_.out();
    x_ = merge_into(pass, plan_.blocks.size() - 1);
    workers_.share(plan_.images, [&](int64_t n, float*) { train_kernels().merge(pass, n); });
  }

  // x_b -> norm, ReLU -> conv1 -> norm, ReLU -> conv2, plus the shortcut: x_{b + 1}.
  void run_preact(int64_t b) {
    const Block& block = plan_.blocks[b];
    if (b == 0 && block.norms[0].batch_stats)
      workers_.share(plan_.images, [&](int64_t n, float*) {
        clear_sums(sums_, n, block.in);
        train_kernels().sum_up(data(x_), block.in, n, data(sums_));
      });
    finish(b, 0);
    ForwardConv pass = pass_of<ForwardConv>(block, 0);
    pass.in = data(x_);
    pass.before = state(b, 0).activation();
    const Batch u1 = convolve(pass, block.weights[0], block.norms[1]);
    finish(b, 1);
    pass = pass_of<ForwardConv>(block, 1);
    pass.in = data(u1);
    pass.before = state(b, 1).activation();
    pass.add_to = data(b == 0 && skip_ != nullptr ? skip_ : x_);
    pass.add_scale = block.scale;
    const bool last = b + 1 == static_cast<int64_t>(plan_.blocks.size());
    const Batch next = convolve(pass, block.weights[1], plan_.blocks[last ? b : b + 1].norms[0]);
    keep(b, u1);
    x_ = next;
  }

  void keep(int64_t b, const Batch& u1) {
    const Block& block = plan_.blocks[b];
    if (!block.trained()) return;
    if (keeps_x(block)) kept_.blocks[b].x = x_;
    kept_.blocks[b].u[0] = u1;
  }

  // Runs a pass; its sums are those that `norm` asks for.
  Batch convolve(ForwardConv& pass, const Tensor& weight, const Norm& norm) {
    const Batch out = pool_.take(pass.out_extent);
    pass.out = data(out);
    pass.weights = transformed_.forward(weight, pass.stride);
    if (norm.batch_stats) pass.sums = data(sums_);
    workers_.for_groups(plan_.images, group_images(pass.out_extent),
                        [&](int64_t first, int64_t count, float* workspace) {
                          for (int64_t n = first; n < first + count; ++n)
                            clear_sums(sums_, n, pass.out_extent);
                          train_kernels().forward_conv(pass, first, count, plan_.images, workspace);
                        });
    return out;
  }

  void finish(int64_t b, int norm) {
    const Block& block = plan_.blocks[b];
    const Extent& extent = extent_of(block, norm);
    check(!block.norms[norm].batch_stats || plan_.images * extent.pixels() >= 2,
          "batch statistics need at least two values a channel, but ", plan_.images,
          " image(s) of ", extent.height, "x", extent.width,
          " pixels reached a batch norm; train on more images, or call net.eval() for running "
          "statistics");
    finish_norm(block.norms[norm], data(sums_), plan_.images, extent.pixels(), state(b, norm));
  }

  NormState state(int64_t b, int norm) const { return norm_state(plan_, kept_, b, norm); }

  Batch read(const Tensor& tensor, const Extent& extent) {
    Batch batch = pool_.take(extent);
    to_batch(tensor, extent, data(batch));
    return batch;
  }

  const Plan& plan_;
  Pool pool_;  // before those who hold its batches
  Kept kept_;
  Workers workers_;
  TransformedWeights transformed_;
  Tensor sums_;
  Batch x_, skip_, branch_;
  Batch* alive_ = &kept_.alive;  // the bits that the next value joins
  std::vector<ChannelBlock> scale_, shift_;
};

std::tuple<Tensor, std::vector<Tensor>> stage_train_fwd_cpu(
    const Tensor& x, std::optional<Tensor> skip, std::vector<Tensor> weights,
    std::vector<Tensor> norms, std::vector<Tensor> running, std::vector<int64_t> blocks,
    std::vector<double> scales, std::vector<bool> norm_flags, std::vector<double> norm_constants) {
  const Plan plan = read_plan(
      "stage_train_fwd", {x, weights, norms, running, blocks, scales, norm_flags, norm_constants},
      skip.has_value());
  const Extent& out = plan.blocks[0].out;
  if (skip.has_value()) {
    check_cpu(*skip, ScalarType::Float, "stage_train_fwd: skip");
    check_shape(*skip, {plan.images, plan.blocks[0].weights[1].size(0), out.height, out.width},
                "stage_train_fwd: skip");
  }
  Forward forward(plan, x, skip);
  forward.run();
  Tensor y = allocate({plan.images, plan.out_channels(), plan.out().height, plan.out().width},
                      "stage_train_fwd: the output", memory_format_of(x));
  forward.write(y);
  return {y, forward.saved()};
}

}  // namespace
}  // namespace pathnet::train

STABLE_TORCH_LIBRARY_IMPL(pathnet, CPU, m) {
  m.impl("stage_train_fwd", TORCH_BOX(&pathnet::train::stage_train_fwd_cpu));
}
