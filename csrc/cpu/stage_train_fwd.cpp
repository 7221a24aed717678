// stage_train_fwd: a run of gated residual blocks in training.
//
// Breadth-first, since batch statistics need the whole batch: one pass over it a convolution. A
// post-activation block's value is merged where the next block reads it; a pre-activation block's
// is written by its own last convolution. What only FORWARD blocks need is overwritten by later
// ones.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "layout.h"
#include "recycled.h"
#include "stage_train_batch.h"
#include "stage_train_kept.h"
#include "stage_train_packed.h"

namespace pathnet::train {
namespace {

class Forward {
 public:
  Forward(const Plan& plan, const Tensor& x, const std::optional<Tensor>& skip)
      : plan_(plan),
        pool_(plan.op, plan.images),
        kept_(new_kept(plan)),
        workers_(plan.op, workspace_floats(plan)),
        weights_(plan),
        sums_(allocate({plan.images, kSums, widest(plan)}, std::string(plan.op) + ": sums")) {
    x_ = read(x, plan.in());
    if (skip.has_value()) skip_ = read(*skip, plan.blocks[0].out());
  }

  void run() {
    if (plan_.projection.has_value()) project();
    for (size_t b = 0; b < plan_.blocks.size(); ++b) plan_.preact() ? run_preact(b) : run_post(b);
    if (!plan_.preact()) merge_last();
  }
  void write(const Tensor& y) const { from_batch(plan_, data(x_), plan_.out(), nullptr, y); }
  std::vector<Tensor> saved() const { return to_list(plan_, kept_); }

 private:
  // The first block's shortcut; a norm behind it is applied where the shortcut is merged.
  void project() {
    const Block& projection = *plan_.projection;
    ForwardConv pass = pass_of<ForwardConv>(projection.convs[0]);
    pass.in = data(x_);
    const bool normed = !projection.norms.empty();
    skip_ = convolve(pass, projection.convs[0], normed ? &projection.norms[0] : nullptr);
    if (!normed) return;
    finish(plan_.size(), 0);
    keep(plan_.size(), 0, skip_);
  }

  // x_b -> conv1, norm, ReLU -> conv2 ..., whose output waits to be merged with the shortcut.
  void run_post(int64_t b) {
    const Block& block = plan_.blocks[b];
    for (int64_t i = 0; i < block.size(); ++i) {
      ForwardConv pass = pass_of<ForwardConv>(block.convs[i]);
      Batch merged;
      if (i > 0) {
        pass.in = data(branch_);
        pass.before = state(b, i - 1).activation();
      } else if (b > 0) {
        merged = merge_into(pass, b - 1);
      } else {
        pass.in = data(x_);
      }
      branch_ = convolve(pass, block.convs[i], &block.norms[i]);
      if (merged != nullptr) x_ = merged;
      finish(b, i);
      keep(b, i, branch_);
    }
    keep_x(b);
    if (b > 0 || skip_ == nullptr) skip_ = x_;
  }

  // Lets the pass read ReLU(s * norm(branch) + skip), the value of block b, and returns it. With a
  // projection skip stands before its norm.
  Batch merge_into(ForwardConv& pass, int64_t b) {
    const Block& block = plan_.blocks[b];
    if (b == 0 && plan_.projection.has_value())
      pass.skip_norm = state(plan_.size(), 0).activation();
    if (block.trained()) alive_ = &kept_.blocks[b].alive;
    pass.alive_is_set = *alive_ != nullptr;
    if (*alive_ == nullptr) *alive_ = new_bits(plan_.op, plan_.images, block.out());
    const Batch merged = pool_.take(block.out());
    pass.in = data(branch_);
    pass.before = state(b, block.size() - 1).activation();
    pass.multipliers = block.multipliers.data();
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

  // x_b -> norm, ReLU -> conv1 -> norm, ReLU -> conv2 ..., plus the shortcut: x_{b + 1}.
  void run_preact(int64_t b) {
    const Block& block = plan_.blocks[b];
    if (b == 0 && block.norms[0].batch_stats) sum_up(block.in());
    Batch u = x_;
    for (int64_t i = 0; i < block.size(); ++i) {
      finish(b, i);
      ForwardConv pass = pass_of<ForwardConv>(block.convs[i]);
      pass.in = data(u);
      pass.before = state(b, i).activation();
      const bool last = i + 1 == block.size();
      if (last) {
        pass.add_to = data(b == 0 && skip_ != nullptr ? skip_ : x_);
        pass.multipliers = block.multipliers.data();
      }
      u = convolve(pass, block.convs[i], last ? first_norm_of(b + 1) : &block.norms[i + 1]);
      if (!last) keep(b, i, u);
    }
    keep_x(b);
    x_ = u;
  }

  void sum_up(const Extent& extent) {
    const float* x = data(x_);
    float* const sums = data(sums_);
    workers_.share(plan_.images, [&](int64_t n, float*) {
      clear_sums(sums, n, extent);
      train_kernels().sum_up(x, extent, n, sums);
    });
  }

  const Norm* first_norm_of(size_t b) const {
    return b < plan_.blocks.size() ? &plan_.blocks[b].norms[0] : nullptr;
  }

  void keep(int64_t b, int64_t conv, const Batch& u) {
    if (plan_.branch(b).trained()) kept_.blocks[b].u[conv] = u;
  }
  void keep_x(int64_t b) {
    if (keeps_x(plan_, b)) kept_.blocks[b].x = x_;
  }

  // Runs a pass; its sums are those that `norm` asks for.
  Batch convolve(ForwardConv& pass, const Conv& conv, const Norm* norm) {
    const Batch out = pool_.take(conv.out);
    pass.out = data(out);
    pass.weights = weights_.forward(conv);
    if (norm != nullptr && norm->batch_stats) pass.sums = data(sums_);
    workers_.for_groups(plan_.images, group_images(conv.out),
                        [&](int64_t first, int64_t count, float* workspace) {
                          for (int64_t n = first; n < first + count && pass.sums != nullptr; ++n)
                            clear_sums(pass.sums, n, conv.out);
                          train_kernels().forward_conv(pass, first, count, plan_.images, workspace);
                        });
    return out;
  }

  void finish(int64_t b, int64_t norm) {
    const Block& block = plan_.branch(b);
    const Extent& extent = block.extent_of(norm);
    check(!block.norms[norm].batch_stats || plan_.images * extent.pixels() >= 2,
          "batch statistics need at least two values a channel, but ", plan_.images,
          " image(s) of ", extent.height, "x", extent.width,
          " pixels reached a batch norm; train on more images, or call net.eval() for running "
          "statistics");
    finish_norm(block.norms[norm], data(sums_), plan_.images, extent.pixels(), state(b, norm));
  }

  NormState state(int64_t b, int64_t norm) const { return norm_state(plan_, kept_, b, norm); }

  Batch read(const Tensor& tensor, const Extent& extent) {
    Batch batch = pool_.take(extent);
    to_batch(plan_, tensor, extent, data(batch));
    return batch;
  }

  const Plan& plan_;
  Pool pool_;  // before those who hold its batches
  Kept kept_;
  Workers workers_;
  PackedWeights weights_;
  Tensor sums_;
  Batch x_, skip_, branch_;
  Batch* alive_ = &kept_.alive;  // the bits that the next value joins
};

std::tuple<Tensor, std::vector<Tensor>> stage_train_fwd_cpu(
    const Tensor& x, std::optional<Tensor> skip, std::optional<Tensor> rows,
    std::vector<Tensor> weights, std::vector<Tensor> norms, std::vector<Tensor> running,
    std::vector<int64_t> blocks, std::vector<double> scales, std::vector<bool> norm_flags,
    std::vector<double> norm_constants) {
  const Plan plan =
      read_plan("stage_train_fwd",
                {x, rows, weights, norms, running, blocks, scales, norm_flags, norm_constants},
                skip.has_value());
  const Extent& out = plan.blocks[0].out();
  if (skip.has_value()) {
    check_cpu(*skip, ScalarType::Float, "stage_train_fwd: skip");
    check_shape(*skip, {plan.images, plan.blocks[0].out_channels(), out.height, out.width},
                "stage_train_fwd: skip");
  }
  Forward forward(plan, x, skip);
  forward.run();
  Tensor y =
      allocate_recycled({x.size(0), plan.out_channels(), plan.out().height, plan.out().width},
                        "stage_train_fwd: the output", memory_format_of(x));
  forward.write(y);
  pass_others(plan, x, y);
  return {y, forward.saved()};
}

}  // namespace
}  // namespace pathnet::train

STABLE_TORCH_LIBRARY_IMPL(pathnet, CPU, m) {
  m.impl("stage_train_fwd", TORCH_BOX(&pathnet::train::stage_train_fwd_cpu));
}
