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
  int64_t row(int64_t image) const { return rows.empty() ? image : rows[image]; }
  bool preact() const { return blocks[0].preact; }
  const Extent& in() const { return blocks.front().in(); }
  const Extent& out() const { return blocks.back().out(); }
  int64_t out_channels() const { return blocks.back().out_channels(); }
  // of convolutions, and of norms
  int64_t layers() const { return blocks.back().first + blocks.back().size(); }
};

Plan read_plan(const char* op, const Arguments& arguments, bool has_skip);

}  // namespace pathnet::train
