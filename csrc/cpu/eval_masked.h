// Gradients cut where a ReLU was zero: the mask of an image is [blocks, height, width], one bit a
// channel.
#pragma once
#include "eval.h"
#include "simd.h"

namespace pathnet {
namespace {

// Puts results into images, cut where bits are not set.
template <Cut kCut>
struct EmitMasked {
  const Image* out;
  const uint16_t* const* masks;  // of images

  struct State {
    float *first, *at;
    int64_t row_stride;
    const uint16_t *first_bits, *bits;
    int64_t width;
    int shift;
  };
  PATHNET_INLINE State begin(int64_t image, int64_t block, int r) const {
    const Image& to = out[image];
    float* first = to.at(block, 0, 0) + r * kLanes;
    const uint16_t* bits = masks[image] + block * to.height * to.width;
    return {first, first, to.row_stride(), bits, bits, to.width, r * kLanes};
  }
  PATHNET_INLINE void move(State& state, int64_t i, int64_t j) const {
    state.at = state.first + i * state.row_stride + j * kBlock;
    state.bits = state.first_bits + i * state.width + j;
  }
  PATHNET_INLINE void put(State& state, Vector y, int64_t i, int64_t j) const {
    const unsigned bits = state.bits[i * state.width + j] >> state.shift;
    float* to = state.at + i * state.row_stride + j * kBlock;
    if (kCut == Cut::kSum) y += load(to);
    y = keep(y, bits);
    if (kCut == Cut::kSummand) y += load(to);
    store(to, y);
  }
  PATHNET_INLINE void end(const State&, int64_t, int64_t, int) const {}
};

inline void mask(const Image& image, const uint16_t* bits) {
  for (int64_t b = 0; b < image.blocks; ++b)
    for (int64_t i = 0; i < image.height; ++i) {
      float* at = image.at(b, i, 0);
      for (int64_t j = 0; j < image.width; ++j, ++bits, at += kBlock)
        for (int r = 0; r < kBlock; r += kLanes) store(at + r, keep(load(at + r), *bits >> r));
    }
}

inline void write_mask(const Image& image, uint16_t* bits) {
  for (int64_t b = 0; b < image.blocks; ++b)
    for (int64_t i = 0; i < image.height; ++i) {
      const float* at = image.at(b, i, 0);
      for (int64_t j = 0; j < image.width; ++j, ++bits, at += kBlock) {
        unsigned alive = 0;
        for (int r = 0; r < kBlock; r += kLanes) alive |= positive(load(at + r)) << r;
        *bits = static_cast<uint16_t>(alive);
      }
    }
}

}  // namespace
}  // namespace pathnet
