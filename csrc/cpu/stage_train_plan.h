#pragma once
// What a call of stage_train_fwd or stage_train_bwd is to do: read from its flat arguments and
// checked.
#include <vector>

#include "../check.h"
#include "train_kernels.h"

namespace pathnet::train {

enum class Gate { kOff, kFull, kForward, kFrozen, kResidual };  // as in pathnet/gates.py

struct Norm {
  Tensor weight, bias, mean, var;  // [channels] each; mean and var are the running ones
  bool batch_stats = false;
  bool update = false;
  double eps = 0.0, momentum = 0.0;
  int64_t channels() const { return weight.size(0); }
};

// conv1 and conv2 stand before their batch norms in a post-activation block, and behind them in a
// pre-activation one: then norms[0] is that of the block's input.
struct Block {
  bool preact = false;
  int64_t stride = 1;
  Gate gate = Gate::kFull;
  float scale = 1.0f;
  Extent in, out;
  Tensor weights[2];
  Norm norms[2];
  // The gradient passes through f: then f's values are kept for the backward.
  bool trained() const { return gate != Gate::kForward; }
  bool has_weight_gradients() const { return gate == Gate::kFull || gate == Gate::kResidual; }
};

struct Arguments {
  const Tensor& x;
  const std::vector<Tensor>&weights, &norms, &running;
  const std::vector<int64_t>& blocks;
  const std::vector<double>& scales;
  const std::vector<bool>& norm_flags;
  const std::vector<double>& norm_constants;
};

struct Plan {
  const char* op;
  int64_t images = 0;
  std::vector<Block> blocks;
  bool preact() const { return blocks[0].preact; }
  const Extent& in() const { return blocks.front().in; }
  const Extent& out() const { return blocks.back().out; }
  int64_t out_channels() const { return blocks.back().weights[1].size(0); }
};

Plan read_plan(const char* op, const Arguments& arguments, bool has_skip);

}  // namespace pathnet::train
