#pragma once
// stage_train: the launches of a run of gated basic blocks, forward and backward.
#include "stage_train_run.cuh"

namespace pathnet::train {

template <class Op, int C, class Launch>
void run_basic_forward(const RunPlan& run, void* y, Launch& launch) {
  const int blocks = static_cast<int>(run.blocks.size());
  const void* stream = run.skip == nullptr ? run.x : run.skip;
  for (int b = 0; b < blocks; ++b) {
    const BlockPlan& block = run.blocks[b];
    ForwardPlan first{};
    if (b == 0) {
      first.x = run.x;
    } else {
      const BlockPlan& before = run.blocks[b - 1];
      first.prologue = kMerge, first.x = stream, first.u = before.u2;
      first.state = before.state(1, C), first.merged = block.x;
      first.bits = run.bits(b), first.join = run.join(b);
      stream = block.x;
    }
    first.weights = block.convs[0].forward(), first.out = block.u1, first.norm = block.norms[0];
    first.state_out = block.state(0, C);
    launch_forward<Op, C>(run, Pass::kForward1, first, launch);

    ForwardPlan second = behind_norm(run, b, 0, 1, C);
    second.out = block.u2, second.norm = block.norms[1], second.state_out = block.state(1, C);
    launch_forward<Op, C>(run, Pass::kForward2, second, launch);
  }
  const BlockPlan& last = run.blocks.back();
  launch(Pass::kMerge, stage_train_merge_kernel<Op>, blocks_of_eights(run.batch.pixels() * C),
         kRunThreads, 0,
         MergePlan{stream, last.u2, last.state(1, C), y, run.last_bits, run.join(blocks),
                   run.batch.pixels(), C});
}

template <class Op, int C, class Launch>
class BasicBackward : BackwardPasses<Op, C, Launch> {
  using Passes = BackwardPasses<Op, C, Launch>;
  using Passes::run_, Passes::out_, Passes::launch_;

 public:
  using Passes::Passes;

  // The buffers with the gradients of x and of the skip; -1: none.
  void run(int& of_x, int& of_skip) {
    const int end = static_cast<int>(run_.blocks.size());
    int g = 0;
    arrive(before(run_.gates, end), out_.buffers[g]);
    const bool separate = out_.has_skip && has_gradient(run_.gates[0]);
    of_skip = out_.has_skip ? g : -1;
    for (int b = before(run_.gates, end); b >= 0; b = before(run_.gates, b)) {
      if (b == 0 && separate) of_skip = g;
      inner(b, out_.buffers[g], out_.buffers[(g + 1) % 3]);
      const bool asked = before(run_.gates, b) >= 0 || out_.needs_input;
      if (asked || run_.blocks[b].convs[0].column >= 0) {
        const void* skip = b == 0 && separate ? nullptr : out_.buffers[g];
        outer(b, out_.buffers[(g + 1) % 3], skip, out_.buffers[(g + 2) % 3]);
      }
      g = (g + 2) % 3;
      if (!separate && out_.has_skip) of_skip = g;
    }
    of_x = out_.has_skip && !separate ? -1 : g;
    Passes::sum();
  }

 private:
  void arrive(int b, void* to) {
    ArrivePlan plan{out_.grad_y, run_.batch.pixels(), Passes::epilogue(b, 1)};
    plan.epilogue.mask = kBits, plan.epilogue.bits = run_.last_bits, plan.epilogue.g_in = to;
    launch_(Pass::kArrive, stage_train_arrive_kernel<Op, C>, blocks_of_pairs<C>(run_.batch),
            Warps<C>::kThreads, Epilogue<Op, C>::kSharedBytes, plan);
  }

  // From the gradient of the block's sum to that behind norm1, and the gradient of conv2's weight.
  void inner(int b, const void* g, void* to) {
    BackwardPlan plan = Passes::convolution(b, 1);
    Passes::enter(plan, g, b, 1);
    Passes::read_norm(plan, b, 0, to);
    Passes::template launch<kNormFollows>(Pass::kBackward2, plan);
  }

  // From there to the gradient of the sum of the block before, or of the run's input.
  void outer(int b, const void* g, const void* skip, void* to) {
    const BlockPlan& block = run_.blocks[b];
    BackwardPlan plan = Passes::convolution(b, 0);
    Passes::enter(plan, g, b, 0);
    plan.source = run_.input(b);
    plan.epilogue = Passes::epilogue(before(run_.gates, b), 1);
    plan.epilogue.skip = run_.gates[b] == kResidual ? nullptr : skip;
    const Masked mask = mask_at(run_.gates, b);
    plan.epilogue.mask = mask == Masked::kNot ? kNoMask : mask == Masked::kByBits ? kBits : kValues;
    plan.epilogue.bits = block.bits, plan.epilogue.g_in = to;
    Passes::template launch<kNormFollows>(Pass::kBackward1, plan);
  }
};

}  // namespace pathnet::train
