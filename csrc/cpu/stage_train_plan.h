#pragma once
// What a call of stage_train_fwd or stage_train_bwd is to do: read from its flat arguments and
// checked.
#include <optional>
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

// One convolution of a block's branch: 3x3 with a border of one zero, or 1x1.
struct Conv {
  Tensor weight;
  int64_t kernel = 3, stride = 1;
  Extent in, out;
};

// norms[i] stands behind convs[i] in a post-activation block, and before it in a pre-activation
// one: there norms[0] is that of the block's input.
struct Block {
  bool preact = false;
  Gate gate = Gate::kFull;
  std::vector<float> multipliers;  // s of each image that runs
  std::vector<Conv> convs;
  std::vector<Norm> norms;
  int64_t first = 0;  // of its convolutions, and of its norms, among those of the run
  const Extent& in() const { return convs.front().in; }
  const Extent& out() const { return convs.back().out; }
  int64_t out_channels() const { return convs.back().weight.size(0); }
  int64_t size() const { return static_cast<int64_t>(convs.size()); }
  // What a norm sees: the input of its convolution, or the output.
  const Extent& extent_of(int64_t norm) const { return preact ? convs[norm].in : convs[norm].out; }
  // The norm through which convs[conv] reads convs[conv - 1].
  int64_t norm_before(int64_t conv) const { return preact ? conv : conv - 1; }
  // The gradient passes through f: then f's values are kept for the backward.
  bool trained() const { return gate != Gate::kForward; }
  bool has_weight_gradients() const { return gate == Gate::kFull || gate == Gate::kResidual; }
};

struct Arguments {
  const Tensor& x;
  const std::optional<Tensor>& rows;
  const std::vector<Tensor>&weights, &norms, &running;
  const std::vector<int64_t>& blocks;
  const std::vector<double>& scales;
  const std::vector<bool>& norm_flags;
  const std::vector<double>& norm_constants;
};

struct Plan {
  const char* op;
  int64_t images = 0;         // that run
  std::vector<int64_t> rows;  // where they stand in x; empty where all of x runs
  std::vector<Block> blocks;
  // The shortcut of the first block where it is a convolution, as a branch: FULL, FROZEN or FORWARD
  // by the gradients that it passes. Its norm stands behind it; before activations it has none.
  std::optional<Block> projection;
  int64_t row(int64_t image) const { return rows.empty() ? image : rows[image]; }
  bool preact() const { return blocks[0].preact; }
  const Extent& in() const { return blocks.front().in(); }
  const Extent& out() const { return blocks.back().out(); }
  int64_t out_channels() const { return blocks.back().out_channels(); }
  // All branches: those of the blocks, and behind them the projection.
  int64_t size() const { return static_cast<int64_t>(blocks.size()); }
  int64_t branches() const { return size() + (projection.has_value() ? 1 : 0); }
  const Block& branch(int64_t b) const { return b < size() ? blocks[b] : *projection; }
  int64_t convs() const {
    const Block& last = branch(branches() - 1);
    return last.first + last.size();
  }
  int64_t norms() const {
    const Block& last = branch(branches() - 1);
    return last.first + static_cast<int64_t>(last.norms.size());
  }

  // The largest value(conv) of all convolutions.
  template <typename Value>
  int64_t most(const Value& value) const {
    int64_t largest = 0;
    for (int64_t b = 0; b < branches(); ++b)
      for (const Conv& conv : branch(b).convs) largest = std::max(largest, value(conv));
    return largest;
  }
};

Plan read_plan(const char* op, const Arguments& arguments, bool has_skip);

}  // namespace pathnet::train
