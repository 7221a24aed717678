#include "eval_group.h"

#include <algorithm>
#include <utility>

#include "conv_part.h"
#include "stage_pack.h"

namespace pathnet {
namespace {

// What the most demanding convolution needs, in floats: to work in, and for its weights.
struct Most {
  int64_t workspace = 0, weights = 0;
};

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

int64_t Group::scratch_floats(const Plan& plan) {
  const Most needed = most(plan);
  return needed.workspace + needed.weights;
}

Group::Group(const Plan& plan, const Section& section, const Switches& switches, int64_t images,
             float* memory, float* scratch)
    : plan_(plan),
      section_(section),
      switches_(switches),
      workspace_(most(plan).workspace),
      scratch_(scratch) {
  for (Images* part : {&stream_, &next_, &inner_[0], &inner_[1]}) {
    part->resize(images);
    for (Image& image : *part) image.data = memory, memory += section.image_floats;
  }
}

const Image& Group::input(int64_t i) {
  const Shape& in = section_.in;
  stream_[i].reshape(in.height, in.width, blocks_of(in.channels));
  return stream_[i];
}

void Group::run(int64_t first, int64_t images, Crew& crew) {
  crew_ = &crew, first_ = first;
  for (int64_t b = section_.first; b < section_.end; ++b) {
    const Block& block = plan_.blocks[b];
    const bool identity = block.shortcut == Shortcut::kIdentity;
    sort(b, first, images);
    if (!identity) run_shortcut(block, images);
    if (!runs_.empty()) run_branch(b, pick(identity ? stream_ : next_, runs_));
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

void Group::convolve(const ConvNorm& step, const Images& in, const Images& out,
                     const Epilogue& epilogue) {
  if (in.empty()) return;
  const std::vector<ConvPart> parts = split(step.conv, in, out, crew_->threads());
  const auto run = [&](int64_t p, float* scratch) {
    Conv conv = parts[p].conv;
    if (conv.weights == nullptr && !is_small(*plan_.kernels, parts[p]))
      pack(*plan_.kernels, conv, scratch + workspace_), conv.weights = scratch + workspace_;
    plan_.kernels->convolve(conv, parts[p].in.data(), parts[p].out.data(), in.size(), epilogue,
                            scratch);
  };
  crew_->run(parts.size(), run, scratch_);
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
void Group::run_branch(int64_t index, const Images& value) {
  const EvalKernels& kernels = *plan_.kernels;
  const Block& block = plan_.blocks[index];
  const size_t count = runs_.size();
  Images in = pick(stream_, runs_);
  Shape shape = block.in;
  int free = 0;
  int64_t relu = 0;
  if (block.form == Form::kPreact) {
    const Images out = reshaped(inner_[free], count, shape);
    for (size_t i = 0; i < count; ++i)
      kernels.affine_relu(in[i], block.first_scale, block.first_shift, out[i]);
    keep_bits(index, relu++, out);
    in = out, free ^= 1;
  }
  for (const ConvNorm& step : block.branch) {
    shape = shape_behind(step.conv, shape);
    if (step.conv.reads_phases()) {
      const Images phases = reshaped(inner_[free], count,
                                     {shape.height, shape.width, step.conv.in_blocks() * kBlock});
      for (size_t i = 0; i < count; ++i) kernels.split_phases(in[i], phases[i]);
      in = phases, free ^= 1;
    }
    const bool last = &step == &block.branch.back();
    const bool active = !last || block.form != Form::kPreact;
    const Images out = last ? value : reshaped(inner_[free], count, shape);
    convolve(step, in, out, {active, last ? scales_.data() : nullptr});
    if (active) keep_bits(index, relu++, out);
    in = out, free ^= 1;
  }
}

void Group::keep_bits(int64_t block, int64_t relu, const Images& values) const {
  if (plan_.bits.data == nullptr) return;
  for (size_t i = 0; i < values.size(); ++i)
    plan_.kernels->write_mask(values[i], plan_.bits.of(block, relu, first_ + runs_[i]));
}

}  // namespace pathnet
