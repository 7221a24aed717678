// The passes of a training step over some images, written once for every instruction set. A file
// that includes this has first chosen its instructions and defined PATHNET_LANES and PATHNET_TABLE,
// the name of the table that it defines.
//
// Each pass reads batch-sized values once, takes them through a prologue into zero-bordered images
// in cache, convolves these, and writes batch-sized results once, from the epilogue.
#pragma once
#include "convolve.h"
#include "train_elementwise.h"
#include "train_epilogues.h"
#include "train_pixels.h"
#include "train_prologues.h"
#include "weight_gradient.h"
#include "weights.h"

namespace pathnet {
namespace {

constexpr int64_t kMostImages = 16;  // that go through a pass together

// Cuts a worker's memory into pieces, each on a cache line.
class Memory {
 public:
  explicit Memory(float* data) : data_(data) {}
  float* take(int64_t floats) {
    float* piece = data_;
    data_ += round_up(floats, kBlock);
    return piece;
  }
  void take(const Extent& extent, int64_t count, Image images[]) {
    for (int64_t i = 0; i < count; ++i) {
      images[i].data = data_;
      images[i].reshape(extent.height, extent.width, extent.blocks);
      take(images[i].size());
    }
  }

 private:
  float* data_;
};

// The image that a convolution of stride 1 reads: of stride 2 it has the four phases.
Extent phases(const Extent& in, int64_t stride) {
  return stride == 1 ? in : Extent{in.height / 2, in.width / 2, in.blocks * 4};
}

int64_t workspace_floats(Extent in, Extent out, int64_t kernel, int64_t stride, int64_t images) {
  if (kernel == 1) return pixel_workspace_floats(in.blocks, out.blocks);
  const Extent a = phases(in, stride);
  const Image in_image{nullptr, a.height, a.width, a.blocks},
      out_image{nullptr, out.height, out.width, out.blocks};
  return images * (round_up(in_image.size(), kBlock) + round_up(out_image.size(), kBlock)) +
         std::max({pathnet::workspace_floats(a.blocks, out.blocks),
                   pathnet::workspace_floats(out.blocks, a.blocks),
                   weight_gradient_workspace_floats(a.blocks, out.blocks)});
}

void forward_conv(const ForwardConv& pass, int64_t first, int64_t count, int64_t batch,
                  float* workspace) {
  if (pass.kernel == 1) return forward_pixels(pass, first, count, batch, workspace);
  Memory memory(workspace);
  Image in[kMostImages];
  const Extent read = phases(pass.in_extent, pass.stride);
  memory.take(read, count, in);
  for (int64_t i = 0; i < count; ++i) fill_forward(pass, first + i, in[i]);
  const Image out{nullptr, pass.out_extent.height, pass.out_extent.width, pass.out_extent.blocks};
  Ahead ahead(first + count, std::min(count, batch - first - count), pass.in_extent.floats());
  ahead.add(pass.in);
  ahead.add(pass.skip);
  ahead.add(pass.add_to);
  float* panels = memory.take(0);
  with_forward_epilogue(pass, first, [&](const auto& epilogue) {
    convolve(in, out, count, pass.weights, panels, epilogue, ahead, pass.stride == 2);
  });
  finish_streams();
}

template <int kStride>
void backward_data(const BackwardConv& pass, int64_t first, int64_t count, const Image* gradient,
                   float* panels, Ahead& ahead) {
  const Extent read = phases(pass.in_extent, kStride);
  const Image out{nullptr, read.height, read.width, read.blocks};
  with_backward_epilogue<kStride>(pass, first, [&](const auto& epilogue) {
    convolve(gradient, out, count, pass.weights, panels, epilogue, ahead);
  });
}

void backward_conv(const BackwardConv& pass, int64_t first, int64_t count, int64_t batch,
                   float* workspace) {
  if (pass.kernel == 1) return backward_pixels(pass, first, count, batch, workspace);
  Memory memory(workspace);
  Image gradient[kMostImages], in[kMostImages];
  memory.take(pass.out_extent, count, gradient);
  for (int64_t i = 0; i < count; ++i) fill_backward(pass, first + i, gradient[i]);
  const int64_t next = std::min(count, batch - first - count);
  if (pass.weight_gradient != nullptr) {
    memory.take(phases(pass.in_extent, pass.stride), count, in);
    for (int64_t i = 0; i < count; ++i)
      fill_input(pass.in, pass.before, pass.in_extent, pass.stride, first + i, in[i]);
    Ahead ahead(first, count, pass.in_extent.floats());  // for the epilogue below
    ahead.add(pass.skip);
    ahead.add(pass.value);
    add_weight_gradient(in, gradient, count, memory.take(0), pass.weight_gradient, pass.fresh,
                        pass.stride == 2, ahead);
  }
  if (pass.weights != nullptr) {
    Ahead ahead(first + count, next, pass.out_extent.floats());
    ahead.add(pass.gradient.g);
    ahead.add(pass.gradient.u);
    ahead.add(pass.passed_on);
    if (pass.stride == 1) {  // else of another size
      if (pass.weight_gradient != nullptr) {
        ahead.add(pass.in);
      } else {
        ahead.add(pass.skip);
        ahead.add(pass.value);
      }
    }
    if (pass.stride == 1)
      backward_data<1>(pass, first, count, gradient, memory.take(0), ahead);
    else
      backward_data<2>(pass, first, count, gradient, memory.take(0), ahead);
  }
  finish_streams();
}

}  // namespace

extern const TrainKernels PATHNET_TABLE = {workspace_floats,
                                           forward_conv,
                                           backward_conv,
                                           transform_weight_block,
                                           pack_pixel_weights,
                                           finish_weight_gradient,
                                           merge,
                                           arrive,
                                           pass_on,
                                           sum_up};

}  // namespace pathnet
