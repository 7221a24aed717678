#pragma once
// net_eval: the forms in which the kernel is compiled, and which of them takes a net.
#include <algorithm>

#include "net_eval.cuh"

namespace pathnet {

// Channels of the first stage, and the groups of 16 pixels that a warp has there.
template <int kWidth_, int kTiles_>
struct Form {
  static constexpr int kWidth = kWidth_, kTiles = kTiles_;
  using Fine = Split<kWidth, kTiles>;
  using Middle = typename Fine::Next;
  using Coarse = typename Middle::Next;
  static constexpr int kMostPixels[] = {Fine::kMostPixels, Middle::kMostPixels,
                                        Coarse::kMostPixels};

  static bool holds(int height, int width) {
    for (int stage = 0; stage < 3; ++stage) {
      if (static_cast<int64_t>(height) * width > kMostPixels[stage]) return false;
      height = (height + 1) / 2, width = (width + 1) / 2;
    }
    return true;
  }
};

using Single = Form<16, 4>;  // x in registers
using Double = Form<32, 8>;  // x in the threads' own memory

// Calls take(form) with the form for nets of `width` channels and images of height x
// width_of_image; false if there is none.
template <class Take>
bool with_form(int width, int height, int width_of_image, Take take) {
  if (width == 16 && Single::holds(height, width_of_image)) return take(Single{}), true;
  if (width == 32 && Double::holds(height, width_of_image)) return take(Double{}), true;
  return false;
}

// Bytes of the largest tile of a stage, and of the pooling that follows them.
template <class F>
int64_t tile_bytes(int64_t element, int height, int width) {
  int64_t most = (F::Coarse::kDown + 1) * F::Coarse::kChannels * sizeof(float);
  for (int64_t channels = F::kWidth; channels <= F::Coarse::kChannels; channels *= 2) {
    most = std::max(most, (height + 2) * (width + 2) * channels * element);
    height = (height + 1) / 2, width = (width + 1) / 2;
  }
  return most;
}

}  // namespace pathnet
