#pragma once
// stage_train: the launches of a run of gated basic blocks, forward and backward. It knows no
// torch: `Launch` is called as launch(kernel, thread blocks, threads, bytes of shared memory,
// plan).
#include <algorithm>
#include <vector>

#include "stage_train_bwd.cuh"
#include "stage_train_ends.cuh"
#include "stage_train_gates.h"

namespace pathnet::train {

constexpr int kMostBlocks =
    256;  // two for each multiprocessor of a large GPU; more do not run at once

inline Batch batch_of(int images, int height, int width, int channels) {
  const int pixels = channels == 64 ? 128 : 256;  // of a band; as in stage_train_cuda_limits.py
  const int rows = std::clamp(pixels / width, 1, height);
  return {images, height, width, rows, (height + rows - 1) / rows};
}

inline int blocks_of(const Batch& batch) {
  return static_cast<int>(std::min<int64_t>(batch.items(), kMostBlocks));
}

// Thread blocks of a merged backward: their slots may take half of T.
inline int slots_of(const Batch& batch, int channels, int element_bytes) {
  const int64_t slots = batch.pixels() * element_bytes / (2 * 9 * channels * sizeof(float));
  return static_cast<int>(std::min<int64_t>(slots, blocks_of(batch)));
}

struct ConvPlan {
  const void* weight;
  bool is_float;
  int64_t by_output, by_input, by_tap;
  int64_t column;  // of its gradient in a slot; negative: none is asked for

  Weights forward() const { return {weight, is_float, by_input, by_output, by_tap}; }
  Weights backward(int element_bytes) const {
    const int64_t last = 8 * by_tap * (is_float ? sizeof(float) : element_bytes);
    return {static_cast<const char*>(weight) + last, is_float, by_output, by_input, -by_tap};
  }
};

struct BlockPlan {
  ConvPlan convs[2];
  NormPlan norms[2];
  void *x, *u1, *u2;
  float* states;  // [2, 4, C]
  uint8_t* bits;  // of the ReLUs before the block

  float* state(int norm, int channels) const { return states + norm * 4 * channels; }
};

struct RunPlan {
  Batch batch;
  Gates gates;
  std::vector<BlockPlan> blocks;
  const void *x, *skip;  // h(x) of block 0; null: x
  uint8_t* last_bits;    // of the ReLUs behind the run
  float* slots;
  int* counter;

  uint8_t* bits(int position) const {
    const size_t place = owner(gates, position);
    return place == blocks.size() ? last_bits : blocks[place].bits;
  }
  Bits join(int position) const {
    const Written written = bits_at(gates, position);
    return written == Written::kNot ? kNoBits : written == Written::kNew ? kNewBits : kJoinBits;
  }
};

// ---- forward ------------------------------------------------------------------------------------

template <class Op, int C, class Launch>
void launch_forward(const RunPlan& run, ForwardPlan& pass, Launch& launch) {
  pass.batch = run.batch, pass.slots = run.slots, pass.counter = run.counter;
  launch(stage_train_forward_kernel<Op, C>, blocks_of(run.batch), Warps<C>::kThreads,
         Forward<Op, C>::shared_bytes(run.batch), pass);
}

template <class Op, int C, class Launch>
void run_forward(const RunPlan& run, void* y, Launch& launch) {
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
    launch_forward<Op, C>(run, first, launch);

    ForwardPlan second{};
    second.prologue = kNorm, second.u = block.u1, second.state = block.state(0, C);
    second.weights = block.convs[1].forward(), second.out = block.u2, second.norm = block.norms[1];
    second.state_out = block.state(1, C);
    launch_forward<Op, C>(run, second, launch);
  }
  const BlockPlan& last = run.blocks.back();
  const int64_t eights = run.batch.pixels() * C / kEach;
  launch(stage_train_merge_kernel<Op>, static_cast<int>((eights + kRunThreads - 1) / kRunThreads),
         kRunThreads, 0,
         MergePlan{stream, last.u2, last.state(1, C), y, run.last_bits, run.join(blocks),
                   run.batch.pixels(), C});
}

// ---- backward -----------------------------------------------------------------------------------

struct BackwardRun {
  const void* grad_y;
  void* buffers[3];           // of gradients, [N, H, W, C]
  float *slopes, *gradients;  // of all norms, [norms, 2, C]
  float* partial;             // [slots, slot_size]
  void* total;                // [slot_size]
  bool total_is_float;
  int64_t slot_size;
  bool has_skip, needs_input;  // of x or skip: the gradient of what block 0 reads
};

template <class Op, int C, class Launch>
class BackwardLaunches {
 public:
  BackwardLaunches(const RunPlan& run, const BackwardRun& outside, Launch& launch)
      : run_(run), out_(outside), launch_(launch) {}

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
    if (out_.partial != nullptr) sum();
  }

 private:
  void arrive(int b, void* to) {
    ArrivePlan plan{out_.grad_y, run_.batch.pixels(), behind_last_norm(b)};
    plan.epilogue.mask = kBits, plan.epilogue.alive = run_.last_bits, plan.epilogue.g_in = to;
    const int64_t groups = (run_.batch.pixels() + Warps<C>::kDown * 8 - 1) / (Warps<C>::kDown * 8);
    launch_(stage_train_arrive_kernel<Op, C>,
            static_cast<int>(std::min<int64_t>(groups, kMostBlocks)), Warps<C>::kThreads,
            Epilogue<Op, C>::kSharedBytes, plan);
  }

  // From the gradient of the block's sum to that behind norm1, and the gradient of conv2's weight.
  void inner(int b, const void* g, void* to) {
    const BlockPlan& block = run_.blocks[b];
    BackwardPlan plan = convolution(b, 1, g);
    plan.source = block.u1, plan.source_state = block.state(0, C);
    plan.epilogue = behind_norm(b, 0, block.u1);
    plan.epilogue.mask = kNormed, plan.epilogue.g_in = to;
    launch(plan);
  }

  // From there to the gradient of the sum of the block before, or of the run's input.
  void outer(int b, const void* g, const void* skip, void* to) {
    const BlockPlan& block = run_.blocks[b];
    BackwardPlan plan = convolution(b, 0, g);
    plan.source = b == 0 ? run_.x : block.x;
    plan.epilogue = behind_last_norm(before(run_.gates, b));
    plan.epilogue.skip = run_.gates[b] == kResidual ? nullptr : skip;
    const Masked mask = mask_at(run_.gates, b);
    plan.epilogue.mask = mask == Masked::kNot ? kNoMask : mask == Masked::kByBits ? kBits : kValues;
    plan.epilogue.alive = mask == Masked::kByBits ? block.bits : block.x;
    plan.epilogue.g_in = to;
    launch(plan);
  }

  BackwardPlan convolution(int b, int conv, const void* g) const {
    const BlockPlan& block = run_.blocks[b];
    const ConvPlan& weight = block.convs[conv];
    BackwardPlan plan{};
    plan.batch = run_.batch, plan.g = g, plan.u = conv == 0 ? block.u1 : block.u2;
    plan.state = block.state(conv, C), plan.slopes = slopes(out_.slopes, b, conv);
    plan.weights = weight.backward(sizeof(typename Op::Element));
    if (weight.column >= 0) plan.partial = out_.partial + weight.column;
    plan.slot_size = out_.slot_size, plan.by_output = weight.by_output;
    plan.by_input = weight.by_input, plan.by_tap = weight.by_tap;
    return plan;
  }

  EpiloguePlan behind_last_norm(int b) const {
    return b < 0 ? EpiloguePlan{} : behind_norm(b, 1, run_.blocks[b].u2);
  }
  EpiloguePlan behind_norm(int b, int norm, const void* u) const {
    const NormPlan& of = run_.blocks[b].norms[norm];
    EpiloguePlan plan{};
    plan.u = u, plan.state = run_.blocks[b].state(norm, C), plan.multiplier = of.multiplier;
    plan.batch_stats = of.batch_stats, plan.slopes = slopes(out_.slopes, b, norm);
    plan.gradients = slopes(out_.gradients, b, norm);
    plan.slots = run_.slots, plan.counter = run_.counter;
    return plan;
  }
  static float* slopes(float* all, int b, int norm) { return all + (2 * b + norm) * 2 * C; }

  void launch(const BackwardPlan& plan) {
    const int blocks = plan.partial == nullptr
                           ? blocks_of(run_.batch)
                           : slots_of(run_.batch, C, sizeof(typename Op::Element));
    launch_(stage_train_backward_kernel<Op, C>, blocks, Warps<C>::kThreads,
            Backward<Op, C>::shared_bytes(run_.batch), plan);
  }

  void sum() {
    const int slots = slots_of(run_.batch, C, sizeof(typename Op::Element));
    const SumPlan plan{out_.partial, out_.total, slots, out_.slot_size};
    const int blocks = static_cast<int>((plan.size + kRunThreads - 1) / kRunThreads);
    out_.total_is_float ? launch_(stage_train_sum_kernel<Tf32>, blocks, kRunThreads, 0, plan)
                        : launch_(stage_train_sum_kernel<Op>, blocks, kRunThreads, 0, plan);
  }

  const RunPlan& run_;
  const BackwardRun& out_;
  Launch& launch_;
};

}  // namespace pathnet::train
