#pragma once
#include "image.h"

namespace pathnet {

// A convolution with batch norm folded in, packed for the kernels; padding is kernel / 2.
struct Conv {
  int64_t in_channels = 0;  // both counts are multiples of kBlock
  int64_t out_channels = 0;
  int64_t kernel = 1;  // 1 or 3
  int64_t stride = 1;
  const float* weights = nullptr;  // [out_channels / kBlock, kernel, kernel, in_channels, kBlock]
  const float* bias = nullptr;     // [out_channels]

  int64_t taps() const { return kernel * kernel * in_channels; }
};

// What becomes of v = convolution + bias: out = v, or out = out + scale * v, then ReLU if asked.
struct Epilogue {
  bool relu = false;
  bool add = false;
  float scale = 1.0f;
};

// The inner loops for one instruction set. `out` already has its shape.
struct Kernels {
  const char* instructions;
  void (*convolve)(const Conv& conv, const Image& in, const Image& out, const Epilogue& epilogue);
  // out = ReLU(in * scale + shift) per channel
  void (*affine_relu)(const Image& in, const float* scale, const float* shift, const Image& out);
};

extern const Kernels kPortableKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

// Those of isa().
const Kernels& kernels();

}  // namespace pathnet
