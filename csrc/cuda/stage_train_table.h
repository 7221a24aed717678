#pragma once
// stage_train: a run as flat lists, as the op's schema has them, read into plans.
#include "stage_train_run.cuh"

namespace pathnet::train {

// Reads a list front to back.
template <class T>
class Reader {
 public:
  explicit Reader(const T* at) : at_(at) {}
  T next() { return *at_++; }

 private:
  const T* at_;
};

using Pointers = Reader<void*>;
using Numbers = Reader<int64_t>;

template <class T>
T* next_as(Pointers& pointers) {
  return static_cast<T*>(pointers.next());
}

// numbers: images, height, width, channels, blocks, form; the gates; for each convolution is_float,
// by_output, by_input, by_tap and column; for each norm batch_stats and moves. reals: for each
// block its multiplier and of both norms eps and momentum. weights: of each convolution.
inline RunPlan read_run(Pointers& weights, Numbers& numbers, const double* reals) {
  const int images = static_cast<int>(numbers.next()), height = static_cast<int>(numbers.next());
  const int width = static_cast<int>(numbers.next()), channels = static_cast<int>(numbers.next());
  RunPlan run{};
  run.batch = batch_of(images, height, width, channels);
  run.blocks.resize(numbers.next());
  run.form = static_cast<Form>(numbers.next());
  for (size_t b = 0; b < run.blocks.size(); ++b)
    run.gates.push_back(static_cast<int>(numbers.next()));
  for (BlockPlan& block : run.blocks) {
    for (ConvPlan& conv : block.convs) {
      conv.weight = weights.next(), conv.is_float = numbers.next() != 0;
      conv.by_output = numbers.next(), conv.by_input = numbers.next();
      conv.by_tap = numbers.next(), conv.column = numbers.next();
    }
  }
  Reader<double> real(reals);
  for (BlockPlan& block : run.blocks) {
    block.scale = static_cast<float>(real.next());
    block.norms[0].multiplier = 1.f;
    block.norms[1].multiplier = run.form == kBasic ? block.scale : 1.f;
    for (NormPlan& norm : block.norms) {
      norm.eps = static_cast<float>(real.next()), norm.momentum = static_cast<float>(real.next());
      norm.batch_stats = numbers.next() != 0, norm.moves = numbers.next() != 0;
    }
  }
  return run;
}

constexpr int kChannelsPlace = 3, kBlocksPlace = 4;  // in numbers

// Of a backward, behind those of the run: total_is_float, slot_size, has_skip, needs_input.
inline void read_backward(BackwardRun& outside, Numbers& numbers) {
  outside.total_is_float = numbers.next() != 0, outside.slot_size = numbers.next();
  outside.has_skip = numbers.next() != 0, outside.needs_input = numbers.next() != 0;
}

// For each norm its weight and bias.
inline void read_norms(RunPlan& run, Pointers& norms) {
  for (BlockPlan& block : run.blocks) {
    for (NormPlan& norm : block.norms)
      norm.weight = next_as<const float>(norms), norm.bias = next_as<const float>(norms);
  }
}

// For each norm its mean, variance and counter of batches.
inline void read_running(RunPlan& run, Pointers& running) {
  for (BlockPlan& block : run.blocks) {
    for (NormPlan& norm : block.norms) {
      norm.running_mean = next_as<float>(running), norm.running_var = next_as<float>(running);
      norm.batches = next_as<int64_t>(running);
    }
  }
}

// For each block x, u1, u2, the norms' states and the bits before it; then the last bits. Null is
// what the backward does not read.
inline void read_kept(RunPlan& run, Pointers& kept) {
  for (BlockPlan& block : run.blocks) {
    block.x = kept.next(), block.u1 = kept.next(), block.u2 = kept.next();
    block.states = next_as<float>(kept), block.bits = next_as<uint8_t>(kept);
  }
  run.last_bits = next_as<uint8_t>(kept);
}

// Where the run keeps nothing of a block: memory that later blocks overwrite.
struct Scratch {
  void *u1, *u2, *x[2];
  float* states;
};

inline void use_scratch(RunPlan& run, const Scratch& scratch) {
  for (size_t b = 0; b < run.blocks.size(); ++b) {
    BlockPlan& block = run.blocks[b];
    if (block.x == nullptr) block.x = scratch.x[b % 2];
    if (block.u1 == nullptr) block.u1 = scratch.u1;
    if (block.u2 == nullptr) block.u2 = scratch.u2;
    if (block.states == nullptr) block.states = scratch.states;
  }
}

}  // namespace pathnet::train
