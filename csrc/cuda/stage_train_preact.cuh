#pragma once
// stage_train: the launches of a run of gated pre-activation blocks, forward and backward.
//
// x' = x + s conv2(relu(norm2 u1)), u1 = conv1(relu(norm1 x)). The sums of norm1's backward are
// complete only behind its last thread block, and only then may the gradient of the skip join: so
// the gradient of x' is made in the prologue of the convolution before it (`entered`), and at the
// end of the run by `depart`.
#include "stage_train_run.cuh"

namespace pathnet::train {

template <class Op, int C, class Launch>
void run_preact_forward(const RunPlan& run, void* y, Launch& launch) {
  const int blocks = static_cast<int>(run.blocks.size());
  const BlockPlan& start = run.blocks.front();
  launch(Pass::kFirstNorm, stage_train_first_norm_kernel<Op, C>,
         start.norms[0].batch_stats ? blocks_of_pairs<C>(run.batch) : 1, Warps<C>::kThreads,
         NormSums<C>::kSharedBytes,
         FirstNormPlan{run.x, run.batch.pixels(), start.norms[0], start.state(0, C), run.slots,
                       run.counter});
  for (int b = 0; b < blocks; ++b) {
    const BlockPlan& block = run.blocks[b];
    ForwardPlan first = behind_norm(run, b, 0, 0, C);
    first.out = block.u1, first.norm = block.norms[1], first.state_out = block.state(1, C);
    launch_forward<Op, C>(run, Pass::kForward1, first, launch);

    ForwardPlan second = behind_norm(run, b, 1, 1, C);
    second.skip = b == 0 && run.skip != nullptr ? run.skip : run.input(b);
    second.scale = block.scale, second.out = y;
    if (b + 1 < blocks) {
      const BlockPlan& next = run.blocks[b + 1];
      second.out = next.x, second.norm = next.norms[0], second.state_out = next.state(0, C);
    }
    launch_forward<Op, C>(run, Pass::kForward2, second, launch);
  }
}

template <class Op, int C, class Launch>
class PreactBackward : BackwardPasses<Op, C, Launch> {
  using Passes = BackwardPasses<Op, C, Launch>;
  using Passes::run_, Passes::out_, Passes::launch_;

 public:
  using Passes::Passes;

  // The buffers with the gradients of x and of the skip; -1: none.
  void run(int& of_x, int& of_skip) {
    const bool separate = out_.has_skip && has_gradient(run_.gates[0]);
    int turn = 0;  // of two buffers, the one for the next sum's gradient
    Gradient g{out_.grad_y, -1, nullptr};
    of_skip = -1;
    for (int b = before(run_.gates, static_cast<int>(run_.blocks.size())); b >= 0;
         b = before(run_.gates, b)) {
      const void* entered = residual(b, g, out_.buffers[turn]);
      inner(b);
      if (b == 0 && separate) {
        if (g.block < 0 && out_.needs_input) depart(g, out_.buffers[turn]);  // a copy of grad_y
        of_skip = turn, entered = nullptr;
      }
      g = {out_.buffers[kOuter], b, run_.gates[b] == kResidual ? nullptr : entered};
      turn = 1 - turn;
    }
    of_x = kInner;
    if (out_.has_skip && !separate) of_skip = kInner, of_x = -1;
    if (out_.needs_input) depart(g, out_.buffers[kInner]);
    Passes::sum();
  }

 private:
  enum Buffer { kInner = 2, kOuter = 3 };  // behind norm2, behind norm1

  struct Gradient {    // of the sum that a block makes
    const void* g;     // the gradient itself, or that behind norm1 of the block that reads the sum
    int block;         // that block; -1: g is the gradient itself
    const void* next;  // of its sum; null: its skip is cut
  };

  // From the gradient of the block's sum, which goes into `sum` where it is made here, to that
  // behind norm2, and the gradient of conv2's weight. Returns where the former is.
  const void* residual(int b, const Gradient& g, void* sum) {
    BackwardPlan plan = Passes::convolution(b, 1);
    enter(plan, g);
    plan.entered = sum, plan.scale = run_.blocks[b].scale;
    Passes::read_norm(plan, b, 1, out_.buffers[kInner]);
    Passes::template launch<kSumFollows>(Pass::kBackward2, plan);
    return g.block < 0 ? g.g : sum;
  }

  // From there to the gradient behind norm1, and the gradient of conv1's weight.
  void inner(int b) {
    BackwardPlan plan = Passes::convolution(b, 0);
    Passes::enter(plan, out_.buffers[kInner], b, 1);
    Passes::read_norm(plan, b, 0, out_.buffers[kOuter]);
    Passes::template launch<kNormFollows>(Pass::kBackward1, plan);
  }

  void depart(const Gradient& g, void* to) {
    DepartPlan plan{};
    enter(plan, g);
    plan.to = to, plan.pixels = run_.batch.pixels(), plan.channels = C;
    launch_(Pass::kDepart, stage_train_depart_kernel<Op>, blocks_of_eights(plan.pixels * C),
            kRunThreads, 0, plan);
  }

  template <class Plan>
  void enter(Plan& plan, const Gradient& g) {
    plan.g = g.g, plan.next = g.next;
    if (g.block >= 0) Passes::enter(plan, g.g, g.block, 0);
  }
};

}  // namespace pathnet::train
