// The backward of post-activation blocks.
#include "stage_train_bwd.h"

namespace pathnet::train {
namespace {

// g_ is the gradient before the ReLU of the block at hand.
class PostBackward : BackwardPasses {
 public:
  explicit PostBackward(const BackwardCall& call) : BackwardPasses(call) {}

  void run() {
    arrive();
    for (auto b = trained_.rbegin(); b != trained_.rend(); ++b)
      run_block(*b, b + 1 == trained_.rend() ? -1 : *(b + 1));
    leave();
  }

 private:
  // Cuts the gradient of the last value where the run since the last trained block does not live.
  void arrive() {
    if (trained_.empty()) return;
    const int64_t b = trained_.back();
    BackwardConv pass;
    join(pass, b);
    arrive(pass, plan_.out());
  }

  // Cuts g_ in place, with the sums for the norm at hand.
  void arrive(BackwardConv& pass, const Extent& extent) {
    pass.in_extent = extent;
    pass.out = data(g_);
    pass.skip = data(g_);
    pass.sums = data(sums_);
    workers_.share(plan_.images, [&](int64_t n, float*) {
      clear_sums(pass.sums, n, pass.in_extent);
      train_kernels().arrive(pass, n);
    });
  }

  // What the gradient of block b's value meets before it is that of its sum.
  void join(BackwardConv& pass, int64_t b) {
    pass.alive = bits(kept_.blocks[b].alive);
    pass.value = data(kept_.blocks[b].u.back());
    pass.mean = state(b, plan_.blocks[b].size() - 1).mean;
    pass.sums = data(sums_);
  }

  // `before` is the trained block before b, or -1.
  void run_block(int64_t b, int64_t before) {
    const Block& block = plan_.blocks[b];
    if (b == 0 && other_shortcut_) write_skip(g_, nullptr);
    const int64_t last = block.size() - 1;
    NormBackward norm = finish(b, last, block.multipliers.data());
    Batch inner = g_;
    BackwardConv pass = descend(b, last, inner, norm);
    pass.in = data(kept_.blocks[b].x);
    const bool skip = block.gate != Gate::kResidual && !(b == 0 && other_shortcut_);
    if (skip) pass.skip = data(g_);
    Batch next;
    if (before >= 0) {
      pass.arrival = Arrival::kJoined;
      join(pass, before);
    }
    if (before >= 0 || gradients_.needs_x() ||
        (b > 0 && (gradients_.needs_skip() || projects_back()))) {
      next = pool_.take(block.in());
      pass.out = data(next);
    }
    convolve(pass, b, 0);
    if (b == 0 && other_shortcut_) return leave_by_shortcut(bits(kept_.blocks[0].alive), next);
    g_ = next;
  }

  // A FORWARD run that comes first cuts the gradient on its way out.
  void leave() {
    if (!other_shortcut_) return write_x(g_, bits(kept_.alive));
    if (plan_.blocks[0].trained()) return;
    write_skip(g_, bits(kept_.alive));
    leave_by_shortcut(bits(kept_.alive), nullptr);
  }

  // g_ is the gradient of the first block's value, to be cut where it does not live, or cut
  // already; x gets one `through_f` and one through a projection.
  void leave_by_shortcut(const uint16_t* alive, Batch through_f) {
    if (projects_back()) {
      const Batch& u = kept_.blocks[plan_.size()].u[0];
      BackwardConv pass;
      pass.alive = alive;
      pass.value = data(u);
      pass.mean = state(plan_.size(), 0).mean;
      arrive(pass, plan_.blocks[0].out());
      const NormBackward norm = finish(plan_.size(), 0);
      project(norm.gradient(data(g_), data(u)), through_f);
    }
    if (through_f != nullptr && gradients_.needs_x()) write_x(through_f, nullptr);
  }
};

}  // namespace

void backward_post(const BackwardCall& call) { PostBackward(call).run(); }

}  // namespace pathnet::train
