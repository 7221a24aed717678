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
    pass.in_extent = plan_.out();
    pass.out = data(g_);
    pass.skip = data(g_);
    join(pass, b);
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
    if (b == 0 && has_skip_) write_skip(g_, nullptr);
    const int64_t last = block.size() - 1;
    NormBackward norm = finish(b, last, block.multipliers.data());
    Batch inner = g_;
    BackwardConv pass = descend(b, last, inner, norm);
    pass.in = data(kept_.blocks[b].x);
    const bool skip = block.gate != Gate::kResidual && !(b == 0 && has_skip_);
    if (skip) pass.skip = data(g_);
    Batch next;
    if (before >= 0) {
      pass.arrival = Arrival::kJoined;
      join(pass, before);
    }
    if (before >= 0 || gradients_.needs_x() || (b > 0 && gradients_.needs_skip())) {
      next = pool_.take(block.in());
      pass.out = data(next);
    }
    convolve(pass, b, 0);
    g_ = next;
    if (b == 0 && has_skip_ && gradients_.needs_x()) write_x(g_, nullptr);
  }

  // A FORWARD run that comes first cuts the gradient on its way out.
  void leave() {
    if (!has_skip_) return write_x(g_, bits(kept_.alive));
    if (!plan_.blocks[0].trained()) write_skip(g_, bits(kept_.alive));
  }
};

}  // namespace

void backward_post(const BackwardCall& call) { PostBackward(call).run(); }

}  // namespace pathnet::train
