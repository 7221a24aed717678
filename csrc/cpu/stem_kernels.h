#pragma once
// What the passes over a stem need to know, for every instruction set: in training batch norm, ReLU
// and, in an ImageNet net, max pooling behind the first convolution; in evaluation of that net this
// convolution too.
//
// Batches stand in memory as [images, height, width, channels] floats, channels a multiple of 16.
// The kernels work on one row of pixels of the batch, counted through all images, so that sums do
// not depend on how rows are shared out.
#include <cstdint>

#include "train_kernels.h"

namespace pathnet {

// 3x3 windows of stride 2 with a padding of 1.
constexpr int64_t kWindow = 3;
constexpr int64_t pooled(int64_t side) { return (side + 1) / 2; }

// Which of the nine taps of a window, row by row, has its maximum; or that no tap is above 0.
constexpr int32_t kNoWinner = kWindow * kWindow;

struct Stem {
  int64_t images = 0, height = 0, width = 0, channels = 0;
  const float* u = nullptr;  // the convolution's output
  float* sums = nullptr;     // [rows, kSums, channels], as those of images in train_kernels.h
  AffineRelu norm;
  float* y = nullptr;           // the pooled values, or all where nothing is pooled
  uint8_t* winners = nullptr;   // a byte a pooled value; null where nothing is pooled
  const float* mean = nullptr;  // in the backward
  NormGradient gradient;        // g is that of y
  float* du = nullptr;

  int64_t rows() const { return images * height; }
  int64_t pooled_rows() const { return images * pooled(height); }
};

// The whole stem in evaluation, row by row.
struct StemConv {
  static constexpr int64_t kKernel = 7, kStride = 2, kIn = 3;
  static constexpr int64_t kMostPixels = 16;  // that a kernel computes at once, and more than asked

  int64_t width = 0, channels = 0;                // of the convolution's output, channels in blocks
  int64_t row_floats = 0;                         // from one row of the padded image to the next
  const float* weights = nullptr;                 // [kKernel * kKernel * kIn, channels]
  const float *scale = nullptr, *bias = nullptr;  // the folded batch norm, of channels
};

// One function each for a row of u, but `pool` for a row of y. A stem is pooled or activated.
struct StemKernels {
  void (*sum_up)(const Stem&, int64_t row);
  void (*pool)(const Stem&, int64_t row);
  void (*activate)(const Stem&, int64_t row);
  void (*sum_up_gradient)(const Stem&, int64_t row);
  void (*pass_back)(const Stem&, int64_t row);
  // x: pixel (0, 0) of the padded image in the first of the kKernel rows that are read
  void (*convolve_row)(const StemConv&, const float* x, float* out);
  // y: a row of the pooled pixels, from `count` <= 3 rows of the convolution
  void (*pool_row)(const StemConv&, const float* const rows[], int64_t count, float* y);
};

extern const StemKernels kPortableStemKernels;
#if defined(__x86_64__)
extern const StemKernels kAvx2StemKernels;
extern const StemKernels kAvx512StemKernels;
#endif

const StemKernels& stem_kernels();

}  // namespace pathnet
