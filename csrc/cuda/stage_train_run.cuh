#pragma once
// stage_train: a run of gated blocks as plain data, and the launches that both forms of blocks
// share. It knows no torch: `Launch` is called as launch(pass, kernel, thread blocks, threads,
// bytes of shared memory, plan).
#include <algorithm>
#include <vector>

#include "stage_train_bwd.cuh"
#include "stage_train_ends.cuh"
#include "stage_train_gates.h"

namespace pathnet::train {

constexpr int kMostBlocks =
    256;  // two for each multiprocessor of a large GPU; more do not run at once

enum class Pass {  // as PASSES in pathnet/ops/stage_train_cuda_count.py names them
  kFirstNorm,
  kForward1,
  kForward2,
  kMerge,
  kArrive,
  kBackward2,
  kBackward1,
  kDepart,
  kSum
};

constexpr int kMostBuffers = 4;  // of gradients

inline int buffers_of(Form form) { return form == kPreact ? kMostBuffers : 3; }

inline Batch batch_of(int images, int height, int width, int channels) {
  const int pixels = channels == 64 ? 128 : 256;  // of a band; as in stage_train_cuda_limits.py
  const int rows = std::clamp(pixels / width, 1, height);
  return {images, height, width, rows, (height + rows - 1) / rows};
}

inline int blocks_of(const Batch& batch) {
  return static_cast<int>(std::min<int64_t>(batch.items(), kMostBlocks));
}

// Of a pass without a product whose threads have pairs of channels, or eight elements.
template <int C>
int blocks_of_pairs(const Batch& batch) {
  constexpr int kEach = Warps<C>::kDown * 8;
  return static_cast<int>(std::min<int64_t>((batch.pixels() + kEach - 1) / kEach, kMostBlocks));
}

inline int blocks_of_eights(int64_t elements) {
  constexpr int kOfBlock = kRunThreads * kEach;
  return static_cast<int>((elements + kOfBlock - 1) / kOfBlock);
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
  float scale;  // the multiplier; basic blocks have it in norms[1]
  void *x, *u1, *u2;
  float* states;  // [2, 4, C]
  uint8_t* bits;  // of the ReLUs before the block

  float* state(int norm, int channels) const { return states + norm * 4 * channels; }
};

struct RunPlan {
  Batch batch;
  Form form;
  Gates gates;
  std::vector<BlockPlan> blocks;
  const void *x, *skip;  // h(x) of block 0; null: x
  uint8_t* last_bits;    // of the ReLUs behind the run
  float* slots;
  int* counter;

  const void* input(int b) const { return b == 0 ? x : blocks[b].x; }
  // What a norm of a block reads.
  const void* normed(int b, int norm) const {
    const BlockPlan& block = blocks[b];
    if (form == kPreact) return norm == 0 ? input(b) : block.u1;
    return norm == 0 ? block.u1 : block.u2;
  }
  uint8_t* bits(int position) const {
    const size_t place = owner(gates, position);
    return place == blocks.size() ? last_bits : blocks[place].bits;
  }
  Bits join(int position) const {
    const Written written = bits_at(gates, position);
    return written == Written::kNot ? kNoBits : written == Written::kNew ? kNewBits : kJoinBits;
  }
};

struct BackwardRun {
  const void* grad_y;
  void* buffers[kMostBuffers];  // of gradients, [N, H, W, C]
  float *slopes, *gradients;    // of all norms, [norms, 2, C]
  float* partial;               // [slots, slot_size]
  void* total;                  // [slot_size]
  bool total_is_float;
  int64_t slot_size;
  bool has_skip, needs_input;  // of x or skip: the gradient of what block 0 reads
};

// ---- launches -----------------------------------------------------------------------------------

template <class Op, int C, class Launch>
void launch_forward(const RunPlan& run, Pass pass, ForwardPlan& plan, Launch& launch) {
  plan.batch = run.batch, plan.slots = run.slots, plan.counter = run.counter;
  launch(pass, stage_train_forward_kernel<Op, C>, blocks_of(run.batch), Warps<C>::kThreads,
         Forward<Op, C>::shared_bytes(run.batch), plan);
}

// relu(norm(u)), of a norm of a block, through one of its convolutions.
inline ForwardPlan behind_norm(const RunPlan& run, int b, int norm, int conv, int channels) {
  ForwardPlan plan{};
  plan.prologue = kNorm, plan.u = run.normed(b, norm);
  plan.state = run.blocks[b].state(norm, channels);
  plan.weights = run.blocks[b].convs[conv].forward();
  return plan;
}

template <class Op, int C, class Launch>
class BackwardPasses {
 public:
  BackwardPasses(const RunPlan& run, const BackwardRun& outside, Launch& launch)
      : run_(run), out_(outside), launch_(launch) {}

 protected:
  // Both gradients of a convolution; what enters, its source and its epilogue are missing.
  BackwardPlan convolution(int b, int conv) const {
    const ConvPlan& weight = run_.blocks[b].convs[conv];
    BackwardPlan plan{};
    plan.batch = run_.batch, plan.weights = weight.backward(sizeof(typename Op::Element));
    if (weight.column >= 0) plan.partial = out_.partial + weight.column;
    plan.slot_size = out_.slot_size, plan.by_output = weight.by_output;
    plan.by_input = weight.by_input, plan.by_tap = weight.by_tap;
    return plan;
  }

  // g enters, the gradient behind this norm.
  template <class Plan>
  void enter(Plan& plan, const void* g, int b, int norm) const {
    plan.g = g, plan.u = run_.normed(b, norm);
    plan.state = run_.blocks[b].state(norm, C), plan.slopes = slopes(out_.slopes, b, norm);
  }

  // The convolution has read relu(norm(u)), and the gradient behind that norm goes `to` somewhere.
  void read_norm(BackwardPlan& plan, int b, int norm, void* to) const {
    plan.source = run_.normed(b, norm), plan.source_state = run_.blocks[b].state(norm, C);
    plan.epilogue = epilogue(b, norm);
    plan.epilogue.mask = kNormed, plan.epilogue.g_in = to;
  }

  // The sums of a norm of a block; b < 0: none.
  EpiloguePlan epilogue(int b, int norm) const {
    EpiloguePlan plan{};
    if (b < 0) return plan;
    const NormPlan& of = run_.blocks[b].norms[norm];
    plan.u = run_.normed(b, norm), plan.state = run_.blocks[b].state(norm, C);
    plan.multiplier = of.multiplier, plan.batch_stats = of.batch_stats;
    plan.slopes = slopes(out_.slopes, b, norm), plan.gradients = slopes(out_.gradients, b, norm);
    plan.slots = run_.slots, plan.counter = run_.counter;
    return plan;
  }

  template <Follows kFollows>
  void launch(Pass pass, const BackwardPlan& plan) const {
    const int blocks = plan.partial == nullptr
                           ? blocks_of(run_.batch)
                           : slots_of(run_.batch, C, sizeof(typename Op::Element));
    launch_(pass, stage_train_backward_kernel<Op, C, kFollows>, blocks, Warps<C>::kThreads,
            Backward<Op, C, kFollows>::shared_bytes(run_.batch), plan);
  }

  void sum() const {
    if (out_.partial == nullptr) return;
    const int slots = slots_of(run_.batch, C, sizeof(typename Op::Element));
    const SumPlan plan{out_.partial, out_.total, slots, out_.slot_size};
    const int blocks = static_cast<int>((plan.size + kRunThreads - 1) / kRunThreads);
    out_.total_is_float
        ? launch_(Pass::kSum, stage_train_sum_kernel<Tf32>, blocks, kRunThreads, 0, plan)
        : launch_(Pass::kSum, stage_train_sum_kernel<Op>, blocks, kRunThreads, 0, plan);
  }

  const RunPlan& run_;
  const BackwardRun& out_;
  Launch& launch_;

 private:
  static float* slopes(float* all, int b, int norm) { return all + (2 * b + norm) * 2 * C; }
};

}  // namespace pathnet::train
