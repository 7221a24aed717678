#pragma once
// What stage_eval asks of the kernels of one instruction set.
#include "image.h"
#include "winograd_weights.h"

namespace pathnet {

// A convolution and the batch norm behind it; padding is kernel / 2.
struct Conv {
  int64_t in_channels = 0, out_channels = 0;
  int64_t kernel = 1;  // 1, or 3 with a stride of 1 or 2
  int64_t stride = 1;
  WeightView view = {};            // the weights as the user has them
  const float* weights = nullptr;  // as `pack` writes them; null: not packed
  const float* scale = nullptr;    // batch norm, folded: output = convolution * scale + bias, ...
  const float* bias = nullptr;     // ... whole blocks of channels

  // Sums of so few products are computed as they are, not by Winograd's transforms.
  bool is_direct() const { return kernel == 3 && stride == 1 && in_channels <= 4; }
  // A 3x3 convolution of stride 2 reads the four phases of its input.
  bool reads_phases() const { return kernel == 3 && stride == 2; }
  int64_t in_blocks() const { return (reads_phases() ? 4 : 1) * blocks_of(in_channels); }
  int64_t out_blocks() const { return blocks_of(out_channels); }
  int64_t weight_floats() const {
    return kernel == 3 ? transformed_floats(in_blocks(), out_blocks())
                       : in_blocks() * out_blocks() * kBlock * kBlock;
  }
};

// What becomes of v = convolution * scale + bias: out = v, or out += scale * v, then ReLU if asked.
struct Epilogue {
  bool relu = false;
  const float* scales = nullptr;  // of each image; null: the result is not added
};

// What a mask cuts of out and v = convolution: out = v, or out + v, or v alone is added to out.
enum class Cut { kResult, kSum, kSummand };

// One image of a tensor [N, C, H, W] with any strides.
template <typename T>
struct View {
  T* data;
  int64_t channels, channel, row, column;  // their number, then strides
};

// All images of a call have one shape, and `out` already has it. The mask of an image is
// [blocks, height, width], one bit a channel.
struct EvalKernels {
  void (*load)(const View<const float>& from, const Image& to);
  void (*store)(const Image& from, const View<float>& to);
  // Writes one block of output channels of the weights.
  void (*pack)(const Conv& conv, int64_t block, float* packed);
  // 3x3 convolutions of stride 1 and up to so many tiles, of all images, do without.
  int64_t few_tiles;
  int64_t (*workspace_floats)(const Conv& conv);
  // `in` holds phases where the convolution reads them.
  void (*convolve)(const Conv& conv, const Image* in, const Image* out, int64_t images,
                   const Epilogue& epilogue, float* workspace);
  // The same for a 3x3 convolution of stride 1; what is cut is zero where bits are not set.
  void (*convolve_masked)(const Conv& conv, const Image* in, const Image* out, int64_t images,
                          const uint16_t* const* masks, Cut cut, float* workspace);
  void (*mask)(const Image& image, const uint16_t* mask);  // in place
  void (*write_mask)(const Image& image, uint16_t* mask);  // where values are above 0
  void (*split_phases)(const Image& in, const Image& out);
  // out = ReLU(in * scale + shift) per channel
  void (*affine_relu)(const Image& in, const float* scale, const float* shift, const Image& out);
};

extern const EvalKernels kEvalPortable;
#if defined(__x86_64__)
extern const EvalKernels kEvalAvx2;
extern const EvalKernels kEvalAvx512;
extern const EvalKernels kEvalAvx512Bf16;  // the products of 3x3 convolutions in bf16
extern const EvalKernels kEvalAmx;         // too
#endif

// Those of isa(), all in float32.
const EvalKernels& eval_kernels();

// Those of full_isa() with products in bf16, or null where it has none.
const EvalKernels* bf16_eval_kernels();

}  // namespace pathnet
