// stage_eval: a chain of gated residual blocks in evaluation, batch norm folded into the
// convolutions.
//
// Depth-first: each thread takes one image through all blocks before it takes the next, so that
// activations stay in its cache and the batch is read once and written once. A block that is OFF on
// an identity shortcut does nothing. An image's result depends on that image alone, so the bits do
// not depend on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>

#include "stage_plan.h"

namespace pathnet {
namespace {

// The memory of one thread: the stream through the blocks, the block's next value, and two values
// inside the branch.
struct Scratch {
  Scratch(float* memory, int64_t image_floats) {
    for (Image* image : {&stream, &next, &inner[0], &inner[1]})
      image->data = memory, memory += image_floats;
  }
  Image stream, next;
  std::array<Image, 2> inner;
};

// The rule of Tensor.suggest_memory_format for four dimensions.
bool suggests_channels_last(const Tensor& x) {
  int64_t least = 0;
  if (x.stride(1) == 0) return false;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (x.size(d) == 0 || x.stride(d) < least) return false;
    if (d == 0 && least == x.stride(1)) return false;  // [N, 1, 1, 1] and the like: contiguous
    least = x.stride(d) * std::max<int64_t>(x.size(d), 1);
  }
  return true;
}

// One image of a tensor [N, C, H, W] with any strides.
template <typename T>
struct View {
  T* data;
  int64_t channel, row, column;
};

template <typename T>
View<T> view(T* data, const Tensor& x, int64_t n) {
  return {data + n * x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

void load(const View<const float>& from, int64_t channels, const Image& to) {
  for (int64_t i = 0; i < to.height; ++i) {
    float* row = to.row(i);
    if (channels < to.channels) std::fill(row, row + to.width * to.channels, 0.0f);
    for (int64_t c = 0; c < channels; ++c) {
      const float* source = from.data + c * from.channel + i * from.row;
      for (int64_t j = 0; j < to.width; ++j) row[j * to.channels + c] = source[j * from.column];
    }
  }
}

void store(const Image& from, int64_t channels, const View<float>& to) {
  for (int64_t i = 0; i < from.height; ++i) {
    const float* row = from.row(i);
    for (int64_t c = 0; c < channels; ++c) {
      float* target = to.data + c * to.channel + i * to.row;
      for (int64_t j = 0; j < from.width; ++j) target[j * to.column] = row[j * from.channels + c];
    }
  }
}

// Every stride-th pixel of `from`, its channels put behind `before` channels of zeros and followed
// by zeros.
void pad_channels(const Image& from, int64_t channels, int64_t stride, int64_t before, bool relu,
                  const Image& to) {
  for (int64_t i = 0; i < to.height; ++i) {
    float* row = to.row(i);
    std::fill(row, row + to.width * to.channels, 0.0f);
    for (int64_t j = 0; j < to.width; ++j) {
      const float* source = from.row(i * stride) + j * stride * from.channels;
      float* target = row + j * to.channels + before;
      for (int64_t c = 0; c < channels; ++c)
        target[c] = relu && source[c] < 0.0f ? 0.0f : source[c];
    }
  }
}

// Puts h(x), after ReLU if asked, where the block's value is to stand.
void run_shortcut(const Block& block, bool relu, Scratch& scratch) {
  if (block.shortcut == Shortcut::kIdentity) return;
  const Shape& out = block.out;
  scratch.next.reshape(out.height, out.width, round_up_to_block(out.channels));
  if (block.shortcut == Shortcut::kPad)
    pad_channels(scratch.stream, block.in.channels, block.stride, block.pad_before, relu,
                 scratch.next);
  else
    kernels().convolve(block.projection.conv, scratch.stream, scratch.next, {.relu = relu});
}

// Adds scale * f(x) to `value`, which holds h(x), and applies the block's ReLU if it has one.
void run_branch(const Block& block, float scale, Scratch& scratch, const Image& value) {
  const Image* in = &scratch.stream;
  int free = 0;
  if (block.form == Form::kPreact) {
    Image& out = scratch.inner[free];
    out.reshape(in->height, in->width, in->channels);
    kernels().affine_relu(*in, block.first_scale, block.first_shift, out);
    in = &out, free ^= 1;
  }
  for (size_t i = 0; i + 1 < block.branch.size(); ++i) {
    const Conv& conv = block.branch[i].conv;
    Image& out = scratch.inner[free];
    out.reshape((in->height - 1) / conv.stride + 1, (in->width - 1) / conv.stride + 1,
                conv.out_channels);
    kernels().convolve(conv, *in, out, {.relu = true});
    in = &out, free ^= 1;
  }
  kernels().convolve(block.branch.back().conv, *in, value,
                     {.relu = block.form != Form::kPreact, .add = true, .scale = scale});
}

void run_block(const Block& block, bool runs, float scale, Scratch& scratch) {
  const bool identity = block.shortcut == Shortcut::kIdentity;
  if (identity && !runs) return;
  run_shortcut(block, !runs && block.form != Form::kPreact, scratch);
  if (runs) run_branch(block, scale, scratch, identity ? scratch.stream : scratch.next);
  if (!identity) std::swap(scratch.stream, scratch.next);
}

Tensor stage_eval_cpu(const Tensor& x, const Tensor& gates, const Tensor& scales,
                      std::vector<Tensor> tensors, std::vector<int64_t> blocks,
                      std::vector<double> eps) {
  Plan plan = read_plan(x, tensors, blocks, eps);
  const int64_t images = x.size(0), count = plan.blocks.size();
  const Switches switches(gates, scales, images, count);

  const auto format = suggests_channels_last(x) ? torch::headeronly::MemoryFormat::ChannelsLast
                                                : torch::headeronly::MemoryFormat::Contiguous;
  const std::array<int64_t, 4> sizes = {images, plan.out.channels, plan.out.height, plan.out.width};
  Tensor out = allocate(sizes, "stage_eval: the output", format);
  if (images == 0) return out;

  for (int64_t b = 0; b < count; ++b)
    for (int64_t n = 0; n < images && !plan.blocks[b].runs; ++n)
      plan.blocks[b].runs = switches.runs(n, b);
  pack(plan);

  const int64_t workers = std::min<int64_t>(images, torch::stable::get_num_threads());
  Tensor memory = allocate({workers, 4, plan.image_floats}, "stage_eval: scratch memory");
  const float* x_data = x.const_data_ptr<float>();
  float *out_data = out.mutable_data_ptr<float>(), *memory_data = memory.mutable_data_ptr<float>();
  std::atomic<int64_t> next_image{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      Scratch scratch(memory_data + worker * 4 * plan.image_floats, plan.image_floats);
      for (int64_t n; (n = next_image++) < images;) {
        scratch.stream.reshape(plan.in.height, plan.in.width, round_up_to_block(plan.in.channels));
        load(view(x_data, x, n), plan.in.channels, scratch.stream);
        for (int64_t b = 0; b < count; ++b)
          run_block(plan.blocks[b], switches.runs(n, b), switches.scale(n, b), scratch);
        store(scratch.stream, plan.out.channels, view(out_data, out, n));
      }
    }
  });
  return out;
}

}  // namespace
}  // namespace pathnet

STABLE_TORCH_LIBRARY_IMPL(pathnet, CPU, m) {
  m.impl("stage_eval", TORCH_BOX(&pathnet::stage_eval_cpu));
}
