#include "eval_group.h"

#include <algorithm>
#include <utility>

#include "stage_pack.h"

namespace pathnet {
namespace {

constexpr int64_t kBuffers = 4;  // an image's value before and behind a block, and two inside it

struct Most {
  int64_t workspace = 0, weights = 0;
};

// What the most demanding convolution needs, in floats.
Most most(const Plan& plan) {
  Most result;
  const_cast<Plan&>(plan).for_convs([&](const ConvNorm& step) {
    result.workspace = std::max(result.workspace, plan.kernels->workspace_floats(step.conv));
    result.weights = std::max(result.weights, step.conv.weight_floats());
  });
  if (plan.packed.has_value()) result.weights = 0;
  result.workspace = round_up(result.workspace, kBlock);
  return result;
}

std::vector<Image> pick(const std::vector<Image>& images, const std::vector<int64_t>& indices) {
  std::vector<Image> picked;
  for (const int64_t i : indices) picked.push_back(images[i]);
  return picked;
}

// Every stride-th pixel of `from`, its channels put behind `before` channels of zeros and followed
// by zeros.
void pad_channels(const Image& from, const Block& block, bool relu, const Image& to) {
  const auto copy = [relu](const float* source, int64_t count, float* target) {
    for (int64_t c = 0; c < count; ++c) target[c] = relu && source[c] < 0.0f ? 0.0f : source[c];
  };
  std::fill(to.data, to.data + to.size(), 0.0f);
  const int64_t lane = block.pad_before % kBlock;
  for (int64_t b = 0; b < from.blocks; ++b) {
    const int64_t channels = std::min(kBlock, block.in.channels - b * kBlock);
    const int64_t below = std::min(channels, kBlock - lane), first = b + block.pad_before / kBlock;
    for (int64_t i = 0; i < to.height; ++i)
      for (int64_t j = 0; j < to.width; ++j) {
        const float* source = from.at(b, i * block.stride, j * block.stride);
        copy(source, below, to.at(first, i, j) + lane);
        if (below < channels) copy(source + below, channels - below, to.at(first + 1, i, j));
      }
  }
}

}  // namespace

int64_t Group::floats(const Plan& plan, int64_t images) {
  const Most needed = most(plan);
  return kBuffers * images * plan.image_floats + needed.workspace + needed.weights;
}

Group::Group(const Plan& plan, const Switches& switches, int64_t images, float* memory)
    : plan_(plan), switches_(switches) {
  for (Images* part : {&stream_, &next_, &inner_[0], &inner_[1]}) {
    part->resize(images);
    for (Image& image : *part) image.data = memory, memory += plan.image_floats;
  }
  workspace_ = memory;
  weights_ = memory + most(plan).workspace;
}

const Image& Group::input(int64_t i) {
  stream_[i].reshape(plan_.in.height, plan_.in.width, blocks_of(plan_.in.channels));
  return stream_[i];
}

void Group::run(int64_t first, int64_t images) {
  for (size_t b = 0; b < plan_.blocks.size(); ++b) {
    const Block& block = plan_.blocks[b];
    const bool identity = block.shortcut == Shortcut::kIdentity;
    sort(b, first, images);
    if (!identity) run_shortcut(block, images);
    if (!runs_.empty()) run_branch(block, pick(identity ? stream_ : next_, runs_));
    if (!identity) std::swap(stream_, next_);
  }
}

void Group::sort(int64_t block, int64_t first, int64_t images) {
  runs_.clear(), rests_.clear(), scales_.clear();
  for (int64_t i = 0; i < images; ++i) {
    const bool runs = !plan_.blocks[block].is_stem() && switches_.runs(first + i, block);
    (runs ? runs_ : rests_).push_back(i);
    if (runs) scales_.push_back(switches_.scale(first + i, block));
  }
}

Group::Images Group::reshaped(Images& images, size_t count, const Shape& shape) {
  for (size_t i = 0; i < count; ++i)
    images[i].reshape(shape.height, shape.width, blocks_of(shape.channels));
  return {images.begin(), images.begin() + count};
}

// Whether the convolution does without packed weights.
bool Group::is_small(const Conv& conv, const Images& out) const {
  const int64_t tiles =
      divide_up(out[0].height, Image::kTile) * divide_up(out[0].width, Image::kTile);
  return conv.kernel == 3 && conv.stride == 1 && !conv.is_direct() &&
         static_cast<int64_t>(out.size()) * tiles <= plan_.kernels->few_tiles;
}

void Group::convolve(const ConvNorm& step, const Images& in, const Images& out,
                     const Epilogue& epilogue) {
  if (in.empty()) return;
  Conv conv = step.conv;
  if (conv.weights == nullptr && !is_small(conv, out))
    pack(*plan_.kernels, step, weights_), conv.weights = weights_;
  plan_.kernels->convolve(conv, in.data(), out.data(), in.size(), epilogue, workspace_);
}

// Puts h(x) where the block's value is to stand; of an image that rests, after the block's ReLU.
void Group::run_shortcut(const Block& block, int64_t images) {
  reshaped(next_, images, block.out);
  for (const auto* indices : {&runs_, &rests_}) {
    const bool relu = indices == &rests_ && block.post_activation();
    if (block.shortcut == Shortcut::kConv) {
      convolve(block.projection, pick(stream_, *indices), pick(next_, *indices), {relu});
    } else {
      for (const int64_t i : *indices) pad_channels(stream_[i], block, relu, next_[i]);
    }
  }
}

// Adds the multiple of f(x) to `value`, which holds h(x), and applies the block's ReLU if it has
// one.
void Group::run_branch(const Block& block, const Images& value) {
  const EvalKernels& kernels = *plan_.kernels;
  const size_t count = runs_.size();
  Images in = pick(stream_, runs_);
  Shape shape = block.in;
  int free = 0;
  if (block.form == Form::kPreact) {
    const Images out = reshaped(inner_[free], count, shape);
    for (size_t i = 0; i < count; ++i)
      kernels.affine_relu(in[i], block.first_scale, block.first_shift, out[i]);
    in = out, free ^= 1;
  }
  for (const ConvNorm& step : block.branch) {
    shape = {(shape.height - 1) / step.conv.stride + 1, (shape.width - 1) / step.conv.stride + 1,
             step.conv.out_channels};
    if (step.conv.reads_phases()) {
      const Images phases = reshaped(inner_[free], count,
                                     {shape.height, shape.width, step.conv.in_blocks() * kBlock});
      for (size_t i = 0; i < count; ++i) kernels.split_phases(in[i], phases[i]);
      in = phases, free ^= 1;
    }
    const bool last = &step == &block.branch.back();
    const Images out = last ? value : reshaped(inner_[free], count, shape);
    convolve(step, in, out,
             {!last || block.form != Form::kPreact, last ? scales_.data() : nullptr});
    in = out, free ^= 1;
  }
}

}  // namespace pathnet
