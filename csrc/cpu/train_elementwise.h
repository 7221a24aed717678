// The passes over one image of a batch that stand at the ends of a run of blocks, where there is no
// convolution to do them for.
#pragma once
#include "train_epilogues.h"
#include "train_prologues.h"

namespace pathnet {
namespace {

template <typename Value>
PATHNET_INLINE void for_pixels(const Extent& extent, int64_t image, Value& value) {
  int64_t at = image * extent.floats();
  for (int64_t b = 0; b < extent.blocks; ++b) {
    value.begin(image, b);
    for (int64_t pixel = 0; pixel < extent.pixels(); ++pixel, at += kBlock) {
      unsigned alive = 0;
      for (int r = 0; r < kRegisters; ++r) {
        const Vector v = value(r, at + r * kLanes);
        if constexpr (Value::kBits) alive |= positive(v) << (r * kLanes);
      }
      if constexpr (Value::kBits) value.keep_alive(at / kBlock, alive);
    }
  }
}

// The value of the last block: merged and alive from in and skip.
void merge(const ForwardConv& pass, int64_t image) {
  with_merged(pass, [&](auto& value) { for_pixels(pass.in_extent, image, value); });
  finish_streams();
}

// The gradient of the first block's value: merged from passed_on and the gradient.
void pass_on(const BackwardConv& pass, int64_t image) {
  MergedGradient value{pass};
  for_pixels(pass.out_extent, image, value);
  finish_streams();
}

// The gradient of the last block's value before its ReLU: out and sums from skip.
void arrive(const BackwardConv& pass, int64_t image) {
  const Extent& extent = pass.in_extent;
  for (int64_t b = 0; b < extent.blocks; ++b)
    for (int r = 0; r < kRegisters; ++r) {
      int64_t at = (image * extent.blocks + b) * extent.pixels() * kBlock + r * kLanes;
      const Vector mean = load(pass.mean + b * kBlock + r * kLanes);
      Sums total;
      for (int64_t pixel = 0; pixel < extent.pixels(); ++pixel, at += kBlock) {
        const Vector g = keep(load(pass.skip + at), pass.alive[at / kBlock] >> (r * kLanes));
        store(pass.out + at, g);
        total.add(pixel % kTile, g, g * (load(pass.value + at) - mean));
      }
      total.flush(sums_of(pass.sums, extent, image, b, r), extent.channels());
    }
}

// Sums of a batch around each image's first value.
void sum_up(const float* batch, const Extent& extent, int64_t image, float* sums) {
  for (int64_t b = 0; b < extent.blocks; ++b)
    for (int r = 0; r < kRegisters; ++r) {
      const float* values =
          batch + (image * extent.blocks + b) * extent.pixels() * kBlock + r * kLanes;
      float* to = sums_of(sums, extent, image, b, r);
      const Vector shift = load(values);
      store(to, shift);
      Sums total;
      for (int64_t pixel = 0; pixel < extent.pixels(); ++pixel) {
        const Vector v = load(values + pixel * kBlock) - shift;
        total.add(pixel % kTile, v, v * v);
      }
      total.flush(to, extent.channels());
    }
}

}  // namespace
}  // namespace pathnet
