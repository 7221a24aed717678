// The 7x7 convolution of an ImageNet stem, batch norm, ReLU and max pooling in evaluation. Its
// three input channels are too few for Winograd's transforms to pay, so it is computed directly: a
// few pixels x a few output channels stay in registers while the 147 taps are added.
#pragma once
#include "simd.h"
#include "stem_kernels.h"

namespace pathnet {
namespace {

#if PATHNET_LANES == 16
constexpr int kStemPixels = 14;
#else
constexpr int kStemPixels = 6;
#endif
constexpr int kStemColumns = 2;  // registers of output channels

static_assert(kStemPixels <= StemConv::kMostPixels);

// Pixels j ... j + kStemPixels - 1 of an output row and the output channels from `c` on.
PATHNET_INLINE void convolve_pixels_of_stem(const StemConv& s, const float* x, int64_t c,
                                            float* out) {
  Vector sum[kStemPixels][kStemColumns] = {};
  const float* u = s.weights + c;
  for (int row = 0; row < StemConv::kKernel; ++row, x += s.row_floats)
#pragma GCC unroll 3
    for (int tap = 0; tap < StemConv::kKernel * StemConv::kIn; ++tap, u += s.channels) {
      Vector weight[kStemColumns];
#pragma GCC unroll 2
      for (int k = 0; k < kStemColumns; ++k) weight[k] = load(u + k * kLanes);
#pragma GCC unroll 16
      for (int j = 0; j < kStemPixels; ++j)
#pragma GCC unroll 2
        for (int k = 0; k < kStemColumns; ++k)
          sum[j][k] += weight[k] * x[j * StemConv::kStride * StemConv::kIn + tap];
    }
#pragma GCC unroll 16
  for (int j = 0; j < kStemPixels; ++j)
#pragma GCC unroll 2
    for (int k = 0; k < kStemColumns; ++k) {
      const int64_t channel = c + k * kLanes;
      store(out + j * s.channels + channel,
            sum[j][k] * load(s.scale + channel) + load(s.bias + channel));
    }
}

// Row `row` of the convolution, behind its batch norm. The last pixels are computed with those
// before them, as many as there are at once.
void convolve_stem_row(const StemConv& s, const float* x, float* out) {
  for (int64_t first = 0; first < s.width; first += kStemPixels) {
    const int64_t j = std::max<int64_t>(0, std::min(first, s.width - kStemPixels));
    for (int64_t c = 0; c < s.channels; c += kStemColumns * kLanes)
      convolve_pixels_of_stem(s, x + j * StemConv::kStride * StemConv::kIn, c,
                              out + j * s.channels);
  }
}

// One row of maxima over up to three rows and three columns, and over 0, which is the ReLU. NaN
// wins, as in PyTorch.
void pool_stem_row(const StemConv& s, const float* const rows[], int64_t count, float* y) {
  for (int64_t j = 0; j < s.width; j += 2)
    for (int64_t c = 0; c < s.channels; c += kLanes) {
      Vector most = {};
      for (int64_t i = 0; i < count; ++i)
        for (int64_t at = std::max<int64_t>(0, j - 1); at < std::min(s.width, j + 2); ++at) {
          const Vector v = load(rows[i] + at * s.channels + c);
          most = (v > most) | (v != v) ? v : most;
        }
      store(y + j / 2 * s.channels + c, most);
    }
}

}  // namespace
}  // namespace pathnet
