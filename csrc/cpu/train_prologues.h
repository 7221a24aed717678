// How batch-sized values come into the zero-bordered images that a convolution reads, each read
// once: a batch norm with ReLU, the merge of a block's branch with its shortcut, or the backward
// of a batch norm.
#pragma once
#include "simd.h"
#include "train_kernels.h"

namespace pathnet {
namespace {

// Writes value(block, r, at) for every pixel into `image`, where `at` is the place in the batch;
// of stride 2, into the four phases in the order of kPhases, block by block.
template <typename Value>
PATHNET_INLINE void fill(const Extent& extent, int64_t stride, int64_t index, const Image& image,
                         Value& value) {
  int64_t at = index * extent.floats();
  const int64_t phases = stride == 1 ? 0 : 1;
  for (int64_t b = 0; b < extent.blocks; ++b) {
    value.begin(index, b);
    for (int64_t i = 0; i < extent.height; ++i) {
      float* rows[2] = {image.at(b, i / stride, 0), nullptr};
      if (phases)
        for (int column = 0; column < 2; ++column)
          rows[column] = image.at(phase_at(i % 2, column) * extent.blocks + b, i / stride, 0);
      for (int64_t j = 0; j < extent.width; ++j, at += kBlock) {
        float* pixel = rows[j & phases] + (j >> phases) * kBlock;
        unsigned alive = 0;
        for (int r = 0; r < kRegisters; ++r) {
          const Vector v = value(r, at + r * kLanes);
          store(pixel + r * kLanes, v);
          if constexpr (Value::kBits) alive |= positive(v) << (r * kLanes);
        }
        if constexpr (Value::kBits) value.keep_alive(at / kBlock, alive);
      }
    }
  }
}

// The values of one block of channels.
struct Channels {
  Vector of[kRegisters];
  PATHNET_INLINE void read(const float* values, int64_t block, float factor = 1.0f) {
    for (int r = 0; r < kRegisters; ++r)
      of[r] = factor * load(values + block * kBlock + r * kLanes);
  }
};

struct Copied {
  static constexpr bool kBits = false;
  const float* in;
  void begin(int64_t, int64_t) {}
  PATHNET_INLINE Vector operator()(int, int64_t at) const { return load(in + at); }
};

struct Activated {
  static constexpr bool kBits = false;
  const float* in;
  AffineRelu before;
  Channels scale{}, shift{};
  PATHNET_INLINE void begin(int64_t, int64_t b) {
    scale.read(before.scale, b), shift.read(before.shift, b);
  }
  PATHNET_INLINE Vector operator()(int r, int64_t at) const {
    return relu(load(in + at) * scale.of[r] + shift.of[r]);
  }
};

// The value of a block, ReLU(s * (scale * u + shift) + skip), kept with the bits that say where it
// lives. Where skip has a norm, the shift of that one joins the other.
template <bool kSkipNorm>
struct Merged {
  static constexpr bool kBits = true;
  const ForwardConv& pass;
  Channels scale{}, shift{}, skip_scale{};
  PATHNET_INLINE void begin(int64_t image, int64_t b) {
    const float multiplier = pass.multipliers[image];
    scale.read(pass.before.scale, b, multiplier), shift.read(pass.before.shift, b, multiplier);
    if constexpr (kSkipNorm) {
      Channels skip_shift;
      skip_scale.read(pass.skip_norm.scale, b), skip_shift.read(pass.skip_norm.shift, b);
      for (int r = 0; r < kRegisters; ++r) shift.of[r] += skip_shift.of[r];
    }
  }
  PATHNET_INLINE Vector operator()(int r, int64_t at) const {
    Vector skip = load(pass.skip + at);
    if constexpr (kSkipNorm) skip *= skip_scale.of[r];
    const Vector v = relu(load(pass.in + at) * scale.of[r] + shift.of[r] + skip);
    stream(pass.merged + at, v);
    return v;
  }
  PATHNET_INLINE void keep_alive(int64_t pixel, unsigned bits) const {
    if (pass.alive == nullptr) return;
    pass.alive[pixel] = static_cast<uint16_t>(pass.alive_is_set ? bits & pass.alive[pixel] : bits);
  }
};

// Calls use(value) with what a pass reads, for `fill` or for a panel of pixels.
template <typename Use>
PATHNET_INLINE void with_input(const float* in, const AffineRelu& before, const Use& use) {
  if (before.scale == nullptr) {
    Copied value{in};
    return use(value);
  }
  Activated value{in, before};
  use(value);
}

template <typename Use>
PATHNET_INLINE void with_merged(const ForwardConv& pass, const Use& use) {
  if (pass.skip_norm.scale == nullptr) {
    Merged<false> value{pass};
    return use(value);
  }
  Merged<true> value{pass};
  use(value);
}

template <typename Use>
PATHNET_INLINE void with_forward(const ForwardConv& pass, const Use& use) {
  if (pass.skip == nullptr) return with_input(pass.in, pass.before, use);
  with_merged(pass, use);
}

inline void fill_input(const float* in, const AffineRelu& before, const Extent& extent,
                       int64_t stride, int64_t index, const Image& image) {
  with_input(in, before, [&](auto& value) { fill(extent, stride, index, image, value); });
}

inline void fill_forward(const ForwardConv& pass, int64_t index, const Image& image) {
  with_forward(pass, [&](auto& value) { fill(pass.in_extent, pass.stride, index, image, value); });
}

// d = a * s * g + b * u + c
struct Normed {
  static constexpr bool kBits = false;
  const NormGradient& gradient;
  Channels a{}, b{}, c{};
  PATHNET_INLINE void begin(int64_t image, int64_t block) {
    a.read(gradient.a, block, multiplier_of(gradient.multipliers, image));
    b.read(gradient.b, block), c.read(gradient.c, block);
  }
  PATHNET_INLINE Vector operator()(int r, int64_t at) const {
    return a.of[r] * load(gradient.g + at) + (b.of[r] * load(gradient.u + at) + c.of[r]);
  }
};

// s * g
struct Scaled {
  static constexpr bool kBits = false;
  const NormGradient& gradient;
  float multiplier = 1.0f;
  void begin(int64_t image, int64_t) { multiplier = multiplier_of(gradient.multipliers, image); }
  PATHNET_INLINE Vector operator()(int, int64_t at) const {
    return multiplier * load(gradient.g + at);
  }
};

// The gradient of a pre-activation block's value: what passes it on the shortcut and what came
// through the branch of the block after it, kept for the block before.
struct MergedGradient {
  static constexpr bool kBits = false;
  const BackwardConv& pass;
  Normed through{pass.gradient};
  float multiplier = 1.0f;
  void begin(int64_t image, int64_t block) {
    through.begin(image, block);
    multiplier = multiplier_of(pass.multipliers, image);
  }
  PATHNET_INLINE Vector operator()(int r, int64_t at) const {
    Vector g = through(r, at);
    if (pass.passed_on != nullptr) g += load(pass.passed_on + at);
    stream(pass.merged + at, g);
    return multiplier * g;
  }
};

template <typename Use>
PATHNET_INLINE void with_backward(const BackwardConv& pass, const Use& use) {
  if (pass.merged != nullptr) {
    MergedGradient value{pass};
    return use(value);
  }
  if (pass.gradient.a == nullptr) {
    Scaled value{pass.gradient};
    return use(value);
  }
  Normed value{pass.gradient};
  use(value);
}

inline void fill_backward(const BackwardConv& pass, int64_t index, const Image& image) {
  with_backward(pass, [&](auto& value) { fill(pass.out_extent, 1, index, image, value); });
}

}  // namespace
}  // namespace pathnet
