// The backward of pre-activation blocks.
#include <optional>

#include "stage_train_bwd.h"

namespace pathnet::train {
namespace {

// g_ is the gradient of the value behind the block at hand, to which that through the branch of the
// block after it is still to be added.
class PreactBackward : BackwardPasses {
 public:
  explicit PreactBackward(const BackwardCall& call) : BackwardPasses(call) {}

  void run() {
    for (auto b = trained_.rbegin(); b != trained_.rend(); ++b) run_block(*b);
    leave();
  }

 private:
  // What came through the branch of a block, before the backward of its first norm.
  struct Branch {
    Batch g, x;
    NormBackward norm;
    bool cut;  // RESIDUAL: nothing passes on the shortcut
  };

  void run_block(int64_t b) {
    const Block& block = plan_.blocks[b];
    const int64_t last = block.size() - 1;
    Batch inner = run_last(b, last);
    NormBackward norm = finish(b, last);
    BackwardConv pass = descend(b, last - 1, inner, norm);
    const Batch& x = kept_.blocks[b].x;
    pass.in = data(x);
    pass.before = state(b, 0).activation();
    const bool first = b == trained_.front();
    Batch outer;
    if (!first || gradients_.needs_x() || gradients_.needs_skip() ||
        gradients_.needs_norm(block, 0))
      outer = mask(pass, pass.in, state(b, 0));
    convolve(pass, b, 0);
    if (outer == nullptr) return;
    branch_ = Branch{outer, x, finish(b, 0), block.gate == Gate::kResidual};
  }

  // The pass over the last convolution, which reads the whole gradient of the block's value: g_.
  Batch run_last(int64_t b, int64_t last) {
    const Block& block = plan_.blocks[b];
    BackwardConv pass = pass_of<BackwardConv>(block.convs[last]);
    Batch merged = g_;
    if (branch_.has_value()) {
      pass_on(pass);
      merged = pool_.take(block.out());
      pass.merged = data(merged);
      pass.multipliers = block.multipliers.data();
    } else {
      pass.gradient.g = data(g_);
      pass.gradient.multipliers = block.multipliers.data();
    }
    const Batch inner = through(pass, b, last);
    g_ = merged;
    return inner;
  }

  // Lets the pass read the whole gradient of a block's value.
  void pass_on(BackwardConv& pass) const {
    pass.gradient = branch_->norm.gradient(data(branch_->g), data(branch_->x));
    if (!branch_->cut) pass.passed_on = data(g_);
  }

  void leave() {
    if (!other_shortcut_) {
      if (gradients_.needs_x()) write_x(whole(), nullptr);
    } else if (trained_.empty() || trained_.front() > 0) {
      if (gradients_.needs_skip() || projects_back()) leave_by_shortcut(whole(), nullptr);
    } else {
      if (branch_.has_value()) branch_->cut = true;
      leave_by_shortcut(g_, gradients_.needs_x() ? whole() : nullptr);
    }
  }

  // g is the gradient of the first block's value; x gets one `through_f` and one through a
  // projection.
  void leave_by_shortcut(const Batch& g, Batch through_f) {
    write_skip(g, nullptr);
    NormGradient gradient;
    gradient.g = data(g);
    if (projects_back()) project(gradient, through_f);
    if (through_f != nullptr) write_x(through_f, nullptr);
  }

  Batch whole() { return branch_.has_value() ? merge_branch() : g_; }

  Batch merge_branch() {
    BackwardConv pass;
    pass.out_extent = plan_.blocks[trained_.front()].in();
    pass_on(pass);
    const Batch merged = pool_.take(pass.out_extent);
    pass.merged = data(merged);
    workers_.share(plan_.images, [&](int64_t n, float*) { train_kernels().pass_on(pass, n); });
    return merged;
  }

  std::optional<Branch> branch_;
};

}  // namespace

void backward_preact(const BackwardCall& call) { PreactBackward(call).run(); }

}  // namespace pathnet::train
