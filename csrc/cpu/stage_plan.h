#pragma once
// What a call of stage_eval is to do: read from its flat arguments and checked.
#include <optional>
#include <vector>

#include "../check.h"
#include "eval.h"
#include "kept.h"

namespace pathnet {

// A stem has no residual function and is its shortcut, a 3x3 convolution of stride 1: with batch
// norm and ReLU, or, before pre-activation blocks, alone.
enum class Form { kBasic, kPreact, kBottleneck, kStem, kPlainStem };
enum class Shortcut { kIdentity, kPad, kConv };

// A vector of channels with any stride.
struct Channels {
  double operator[](int64_t c) const { return data[c * stride]; }
  const float* data = nullptr;
  int64_t stride = 0;
};

struct Norm {
  Channels weight, bias, mean, var;
  int64_t channels = 0;
  double eps = 0.0;
};

// A convolution with the batch norm that follows it, if one does.
struct ConvNorm {
  bool has_norm = false;
  Norm norm;
  Conv conv;
};

struct Shape {
  int64_t height, width, channels;  // the real number of channels
};

inline Shape shape_behind(const Conv& conv, const Shape& in) {
  return {(in.height - 1) / conv.stride + 1, (in.width - 1) / conv.stride + 1, conv.out_channels};
}

struct Block {
  Form form;
  Shortcut shortcut;
  int64_t stride;
  int64_t pad_before;
  Shape in, out;
  Norm first_norm;                     // pre-activation: the norm on the block's input ...
  const float* first_scale = nullptr;  // ... folded
  const float* first_shift = nullptr;
  std::vector<ConvNorm> branch;  // the residual function
  ConvNorm projection;           // where shortcut == kConv
  bool runs = false;             // for at least one image

  bool is_stem() const { return form == Form::kStem || form == Form::kPlainStem; }
  bool post_activation() const { return form != Form::kPreact && form != Form::kPlainStem; }
};

// Per image and block: does it run, and with which multiplier.
class Switches {
 public:
  Switches(const Tensor& gates, const Tensor& scales, int64_t images, int64_t blocks);
  bool runs(int64_t image, int64_t block) const {
    return gates_[image * gate_image_ + block * gate_block_] != 0;
  }
  float scale(int64_t image, int64_t block) const {
    return scales_[image * scale_image_ + block * scale_block_];
  }

 private:
  const int8_t* gates_;
  const float* scales_;
  int64_t gate_image_, gate_block_, scale_image_, scale_block_;
};

// Blocks first ... end - 1, whose images are of about one size.
struct Section {
  int64_t first, end;
  Shape in;
  int64_t image_floats;  // that the largest image needs with its border
};

// Where the values behind the two ReLUs of every block are above 0, if anybody asks for it: a mask
// [blocks, height, width] of each image of the batch.
struct Bits {
  uint16_t* data = nullptr;
  int64_t images = 0, words = 0;  // of one mask
  uint16_t* of(int64_t block, int64_t relu, int64_t image) const {
    return data + ((2 * block + relu) * images + image) * words;
  }
};

struct Plan {
  const EvalKernels* kernels = nullptr;
  std::vector<Block> blocks;
  std::vector<Section> sections;  // at least one
  Shape in, out;
  Tensor constants;            // folded batch norms
  std::optional<Lent> packed;  // the weights as the kernels read them; none: each thread packs
  Bits bits;

  // The convolutions that run for at least one image.
  template <typename Visit>
  void for_convs(const Visit& visit) {
    for (Block& block : blocks) {
      if (block.shortcut == Shortcut::kConv) visit(block.projection);
      if (!block.runs) continue;
      for (ConvNorm& step : block.branch) visit(step);
    }
  }
};

Plan read_plan(const Tensor& x, const std::vector<Tensor>& tensors,
               const std::vector<int64_t>& blocks, const std::vector<double>& eps);

}  // namespace pathnet
