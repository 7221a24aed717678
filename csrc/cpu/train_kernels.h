#pragma once
// What the passes of a training step need to know, for every instruction set.
//
// A batch stands in memory as [images, blocks, height, width, 16] floats. Per channel values
// (scales, shifts, ...) are padded to whole blocks with zeros.
#include <cstdint>

#include "image.h"
#include "winograd_weights.h"

namespace pathnet {

// One image of a batch.
struct Extent {
  int64_t height = 0, width = 0, blocks = 0;
  int64_t channels() const { return blocks * kBlock; }
  int64_t pixels() const { return height * width; }
  int64_t floats() const { return blocks * pixels() * kBlock; }
};

// Partial sums of each image: [images, kSums, channels].
//   forward:  a shift K, then the sums of (u - K) and (u - K)^2
//   backward: nothing, then the sums of g and g * (u - mean)
constexpr int64_t kSums = 3;

// y = x * scale + shift per channel, then ReLU.
struct AffineRelu {
  const float* scale = nullptr;  // null: y = x
  const float* shift = nullptr;
};

// s of an image, the multiplier of a block's branch, where each image has its own; null: 1.
inline float multiplier_of(const float* multipliers, int64_t image) {
  return multipliers == nullptr ? 1.0f : multipliers[image];
}

// u = conv(in'), where in' = affine_relu(in), or where `skip` is given the value of the block
// before: in' = ReLU(s * (in * scale + shift) + skip), skip * scale + shift if it has a norm.
struct ForwardConv {
  Extent in_extent, out_extent;
  int64_t kernel = 3, stride = 1;
  const float* weights = nullptr;
  const float* in = nullptr;
  AffineRelu before;
  const float* skip = nullptr;
  AffineRelu skip_norm;           // of which the ReLU is not taken
  float* merged = nullptr;        // in' is kept here
  uint16_t* alive = nullptr;      // one bit an element: in' > 0
  bool alive_is_set = false;      // whether the bits are combined with those that stand there
  float* out = nullptr;           // u, or
  const float* add_to = nullptr;  // add_to + s * u
  const float* multipliers = nullptr;
  float* sums = nullptr;  // of what is written; null: not wanted
};

// The gradient that reaches a convolution's output: d = a * s * g + b * u + c per channel, the
// backward of a batch norm on u (or d = s * g, where there is none).
struct NormGradient {
  const float *g = nullptr, *u = nullptr;
  const float *a = nullptr, *b = nullptr, *c = nullptr;
  const float* multipliers = nullptr;
};

// What becomes of the gradient of a convolution's input.
enum class Arrival {
  kMasked,  // out = gradient where affine_relu(value) > 0; sums of out with value
  kJoined,  // out = gradient + skip where the bits are set; sums of out with value
  kPlain,   // out = gradient + skip
};

struct BackwardConv {
  Extent in_extent, out_extent;
  int64_t kernel = 3, stride = 1;
  // the gradient of the output ...
  NormGradient gradient;
  const float* passed_on = nullptr;  // ... where `merged` is given d = s * merged, with
  float* merged = nullptr;           // merged = passed_on (unless cut) + a * g + b * u + c
  const float* multipliers = nullptr;
  // the input again, for the gradient of the weights
  const float* in = nullptr;
  AffineRelu before;
  float* weight_gradient = nullptr;  // [positions (1x1: 1), in, out channels], or null ...
  bool fresh = true;                 // ... is set, not added to
  // the gradient of the input
  const float* weights = nullptr;  // of the backward convolution, or null
  Arrival arrival = Arrival::kPlain;
  float* out = nullptr;
  const float* skip = nullptr;  // of a 1x1 convolution of stride 2: out itself, added to in place
  const uint16_t* alive = nullptr;
  const float* value = nullptr;
  AffineRelu value_before;
  const float* mean = nullptr;
  float* sums = nullptr;
};

// One function each for the images first ... first + count - 1.
struct TrainKernels {
  int64_t (*workspace_floats)(Extent in, Extent out, int64_t kernel, int64_t stride,
                              int64_t images);
  void (*forward_conv)(const ForwardConv&, int64_t first, int64_t count, int64_t batch,
                       float* workspace);
  void (*backward_conv)(const BackwardConv&, int64_t first, int64_t count, int64_t batch,
                        float* workspace);
  void (*transform_weight_block)(const WeightView& weights, const Taps& taps,
                                 const Placement& place, int64_t block, float* u);
  void (*pack_pixel_weights)(const WeightView& weights, int64_t block, float* u);  // of 1x1
  // dU [positions, in, out channels] -> [9, in, out channels]
  void (*finish_weight_gradient)(const float* u, int64_t in_channels, int64_t out_channels,
                                 float* gradient);
  // without a convolution, over one image
  void (*merge)(const ForwardConv&, int64_t image);
  void (*arrive)(const BackwardConv&, int64_t image);
  void (*pass_on)(const BackwardConv&, int64_t image);
  void (*sum_up)(const float* batch, const Extent&, int64_t image, float* sums);
};

extern const TrainKernels kPortableTrainKernels;
#if defined(__x86_64__)
extern const TrainKernels kAvx2TrainKernels;
extern const TrainKernels kAvx512TrainKernels;
#endif

const TrainKernels& train_kernels();

}  // namespace pathnet
