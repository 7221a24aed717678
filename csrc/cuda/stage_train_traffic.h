#pragma once
// stage_train: which launches a run makes, and the bytes of activations, masks and weights that
// they read and write. It is counted from the same launches as are made: `Counter` takes their
// place. A number a channel counts nowhere.
#include "stage_train_forms.cuh"
#include "stage_train_table.h"

namespace pathnet::train {

struct Traffic {
  Pass pass;
  int64_t read, written;  // each distinct byte once
  int64_t requested;      // rows above and below a band and weights as often as thread blocks ask
  int64_t workspace;      // partial sums, which stand in none of the others

  // So many bytes, each asked for once.
  void reads(int64_t bytes) { reads(bytes, bytes); }
  void reads(int64_t bytes, int64_t asked) { read += bytes, requested += asked; }
  void writes(int64_t bytes) { written += bytes, requested += bytes; }
};

class Counter {
 public:
  Counter(const RunPlan& run, int channels, int element_bytes)
      : batch_(run.batch), channels_(channels), weight_floats_(run.blocks[0].convs[0].is_float) {
    stream_ = batch_.pixels() * channels * element_bytes;
    bits_ = batch_.pixels() * channels / 8, element_bytes_ = element_bytes;
    const int64_t beside = 2 * (batch_.items() / batch_.images - 1);  // rows of other bands
    staged_ = stream_ / batch_.height * (batch_.height + beside);
  }

  template <class Kernel, class Plan>
  void operator()(Pass pass, Kernel*, int blocks, int, int64_t, const Plan& plan) {
    Traffic traffic{pass, 0, 0, 0, 0};
    add(traffic, plan, blocks);
    for (const int64_t number : {static_cast<int64_t>(pass), traffic.read, traffic.written,
                                 traffic.requested, traffic.workspace})
      table_.push_back(number);
  }

  // Five numbers a launch, as they stand in Traffic.
  const std::vector<int64_t>& table() const { return table_; }

 private:
  void add(Traffic& traffic, const ForwardPlan& plan, int blocks) const {
    if (plan.prologue != kNorm) traffic.reads(stream_, staged_);
    if (plan.prologue != kInput) traffic.reads(stream_, staged_);
    if (plan.prologue == kMerge) traffic.writes(stream_), add_bits(traffic, plan.join);
    add_weights(traffic, plan.weights, blocks);
    if (plan.skip != nullptr) traffic.reads(stream_);
    traffic.writes(stream_);
    if (plan.state_out != nullptr) add_sums<Moments>(traffic, plan.norm.batch_stats, blocks);
  }

  void add(Traffic& traffic, const BackwardPlan& plan, int blocks) const {
    const bool trains = plan.partial != nullptr;
    for (const void* entering : {plan.g, plan.u, plan.next})
      if (entering != nullptr) traffic.reads(stream_, staged_);
    if (plan.u != nullptr && plan.entered != nullptr) traffic.writes(stream_);
    if (trains || plan.masks_by_source()) traffic.reads(stream_, trains ? staged_ : stream_);
    add_weights(traffic, plan.weights, blocks);
    if (trains) traffic.workspace += blocks * weight_size() * static_cast<int64_t>(sizeof(float));
    add_epilogue(traffic, plan.epilogue, blocks);
  }

  void add(Traffic& traffic, const MergePlan& plan, int) const {
    traffic.reads(2 * stream_), traffic.writes(stream_), add_bits(traffic, plan.join);
  }
  void add(Traffic& traffic, const ArrivePlan& plan, int blocks) const {
    traffic.reads(stream_), add_epilogue(traffic, plan.epilogue, blocks);
  }
  void add(Traffic& traffic, const FirstNormPlan& plan, int blocks) const {
    if (plan.norm.batch_stats) traffic.reads(stream_);
    add_sums<Moments>(traffic, plan.norm.batch_stats, blocks);
  }
  void add(Traffic& traffic, const DepartPlan& plan, int) const {
    for (const void* read : {plan.g, plan.u, plan.next})
      if (read != nullptr) traffic.reads(stream_);
    traffic.writes(stream_);
  }
  void add(Traffic& traffic, const SumPlan& plan, int) const {
    traffic.workspace += plan.slots * plan.size * static_cast<int64_t>(sizeof(float));
    traffic.writes(plan.size * (weight_floats_ ? sizeof(float) : element_bytes_));
  }

  void add_epilogue(Traffic& traffic, const EpiloguePlan& plan, int blocks) const {
    if (plan.skip != nullptr) traffic.reads(stream_);
    if (plan.mask == kBits) traffic.reads(bits_, 4 * bits_);  // a byte for each pair of channels
    if (plan.state != nullptr && plan.mask != kNormed) traffic.reads(stream_);
    traffic.writes(stream_);
    if (plan.slopes != nullptr) add_sums<GradientSums>(traffic, true, blocks);
  }

  void add_bits(Traffic& traffic, Bits join) const {
    if (join != kNoBits) traffic.writes(bits_);
    if (join == kJoinBits) traffic.reads(bits_);
  }
  void add_weights(Traffic& traffic, const Weights& weights, int blocks) const {
    const int64_t bytes = weight_size() * (weights.is_float ? sizeof(float) : element_bytes_);
    traffic.reads(bytes, blocks * bytes);
  }
  template <class Partial>
  void add_sums(Traffic& traffic, bool made, int blocks) const {
    if (made) traffic.workspace += static_cast<int64_t>(blocks) * channels_ * sizeof(Partial);
  }
  int64_t weight_size() const { return int64_t{9} * channels_ * channels_; }

  Batch batch_;
  int channels_, element_bytes_;
  bool weight_floats_;
  int64_t stream_, bits_, staged_;  // bytes of a value, of its mask, and of it as bands ask for it
  std::vector<int64_t> table_;
};

// The table of a run that is nowhere in memory: its pointers tell what would be there. `numbers` as
// read_run and, for the backward, read_backward have them.
template <class Op, int C>
std::vector<int64_t> count_launches(const int64_t* numbers, bool backward) {
  void* const nowhere = &numbers;
  const int64_t blocks = numbers[kBlocksPlace];
  const std::vector<void*> weights(2 * blocks, nowhere);
  const std::vector<double> reals(5 * blocks);
  Pointers next_weight(weights.data());
  Numbers next(numbers);
  RunPlan run = read_run(next_weight, next, reals.data());
  run.x = run.last_bits = static_cast<uint8_t*>(nowhere);
  use_scratch(run, {nowhere, nowhere, {nowhere, nowhere}, static_cast<float*>(nowhere)});
  Counter counter(run, C, sizeof(typename Op::Element));
  if (!backward) {
    run_forward<Op, C>(run, nowhere, counter);
  } else {
    BackwardRun outside{};
    outside.grad_y = nowhere, outside.slopes = outside.gradients = static_cast<float*>(nowhere);
    for (void*& buffer : outside.buffers) buffer = nowhere;
    read_backward(outside, next);
    if (outside.slot_size > 0) outside.partial = static_cast<float*>(nowhere);
    int of_x, of_skip;
    run_backward<Op, C>(run, outside, counter, of_x, of_skip);
  }
  return counter.table();
}

}  // namespace pathnet::train
