// What becomes of a convolution's results in a training step, while they are in registers. Each
// epilogue writes a batch-sized result past the caches and sums up what the batch norm at hand
// needs, image by image, so that sums do not depend on how images are shared out.
#pragma once
#include "simd.h"
#include "train_kernels.h"

namespace pathnet {
namespace {

// Where the results of a tile stand in a batch. kStride 2: the results are the four phases
// of an image in the order of kPhases, block by block.
template <int kStride>
struct Cursor {
  int64_t block;  // of channels
  int64_t start;  // of the image and block, in floats
  int64_t at;     // of the tile
  int64_t row;    // from one row of results to the next
  static constexpr int64_t kPixel = kStride * kBlock;

  Cursor(const Extent& extent, int64_t image, int64_t b, int r) {
    const Phase phase = kPhases[kStride == 1 ? 0 : b / extent.blocks];
    block = kStride == 1 ? b : b % extent.blocks;
    row = kStride * extent.width * kBlock;
    start = at = (image * extent.blocks + block) * extent.pixels() * kBlock + r * kLanes +
                 (phase.row * extent.width + phase.column) * kBlock;
  }
  PATHNET_INLINE void move(int64_t i, int64_t j) { at = start + i * row + j * kPixel; }
  PATHNET_INLINE int64_t pixel(int i, int j) const { return at + i * row + j * kPixel; }
};

// The sums of one register of channels, in one column of results each so that they do not wait for
// one another.
struct Sums {
  Vector first[kTile] = {}, second[kTile] = {};

  PATHNET_INLINE void add(int i, Vector a, Vector b) { first[i] += a, second[i] += b; }
  PATHNET_INLINE void flush(float* sums, int64_t channels) {
    float *to = sums + channels, *to_second = sums + 2 * channels;
    store(to, load(to) + ((first[0] + first[1]) + (first[2] + first[3])));
    store(to_second, load(to_second) + ((second[0] + second[1]) + (second[2] + second[3])));
  }
};

inline float* sums_of(float* sums, const Extent& extent, int64_t image, int64_t block, int r) {
  return sums + image * kSums * extent.channels() + block * kBlock + r * kLanes;
}

// out = u or add_to + s * u, and its sums around the image's first value.
template <bool kAdd>
struct ForwardEpilogue {
  const ForwardConv& pass;
  int64_t first;  // image of the batch

  struct State {
    Cursor<1> cursor;
    float* sums;
    const float* multiplier;
    bool fresh;
    Vector shift;
    Sums total;
  };

  PATHNET_INLINE State begin(int64_t image, int64_t block, int r) const {
    float* sums = pass.sums == nullptr
                      ? nullptr
                      : sums_of(pass.sums, pass.out_extent, first + image, block, r);
    const float* multiplier = kAdd ? pass.multipliers + first + image : nullptr;
    return {
        Cursor<1>(pass.out_extent, first + image, block, r), sums, multiplier, false, Vector{}, {}};
  }
  PATHNET_INLINE void move(State& s, int64_t i, int64_t j) const {
    s.cursor.move(i, j);
    if (s.sums == nullptr) return;
    s.fresh = i == 0 && j == 0;
    s.shift = load(s.sums);
  }
  PATHNET_INLINE void put(State& s, Vector u, int i, int j) const {
    const int64_t at = s.cursor.pixel(i, j);
    if constexpr (kAdd) u = load(pass.add_to + at) + *s.multiplier * u;
    stream_line(pass.out + at, u);
    if (i == 0 && j == 0 && s.fresh) store(s.sums, s.shift = u);
    const Vector v = u - s.shift;
    s.total.add(i, v, v * v);
  }
  PATHNET_INLINE void end(State& s, int64_t, int64_t, int) const {
    if (s.sums != nullptr) s.total.flush(s.sums, pass.out_extent.channels());
  }
};

template <Arrival kArrival, bool kSkip, int kStride>
struct BackwardEpilogue {
  const BackwardConv& pass;
  int64_t first;

  struct State {
    Cursor<kStride> cursor;
    int r;
    Vector scale, shift, mean;
    Sums total;
  };

  PATHNET_INLINE State begin(int64_t image, int64_t b, int r) const {
    State s{Cursor<kStride>(pass.in_extent, first + image, b, r), r, {}, {}, {}, {}};
    const int64_t channel = s.cursor.block * kBlock + r * kLanes;
    if constexpr (kArrival == Arrival::kMasked) {
      s.scale = load(pass.value_before.scale + channel);
      s.shift = load(pass.value_before.shift + channel);
    }
    if constexpr (kArrival != Arrival::kPlain) s.mean = load(pass.mean + channel);
    return s;
  }
  PATHNET_INLINE void move(State& s, int64_t i, int64_t j) const { s.cursor.move(i, j); }
  PATHNET_INLINE void put(State& s, Vector g, int i, int j) const {
    const int64_t at = s.cursor.pixel(i, j);
    if constexpr (kSkip) g += load(pass.skip + at);
    if constexpr (kArrival == Arrival::kMasked) {
      const Vector value = load(pass.value + at);
      g = value * s.scale + s.shift > 0.0f ? g : Vector{};
      s.total.add(i, g, g * (value - s.mean));
    }
    if constexpr (kArrival == Arrival::kJoined) {
      g = keep(g, pass.alive[at / kBlock] >> (s.r * kLanes));
      s.total.add(i, g, g * (load(pass.value + at) - s.mean));
    }
    stream_line(pass.out + at, g);
  }
  PATHNET_INLINE void end(State& s, int64_t image, int64_t, int) const {
    if constexpr (kArrival != Arrival::kPlain)
      s.total.flush(sums_of(pass.sums, pass.in_extent, first + image, s.cursor.block, s.r),
                    pass.in_extent.channels());
  }
};

// Call use(epilogue) with what becomes of a pass's results.
template <typename Use>
PATHNET_INLINE void with_forward_epilogue(const ForwardConv& pass, int64_t first, const Use& use) {
  if (pass.add_to != nullptr) return use(ForwardEpilogue<true>{pass, first});
  use(ForwardEpilogue<false>{pass, first});
}

template <int kStride, typename Use>
PATHNET_INLINE void with_backward_epilogue(const BackwardConv& pass, int64_t first,
                                           const Use& use) {
  const bool skip = pass.skip != nullptr;
  switch (pass.arrival) {
    case Arrival::kMasked:
      return use(BackwardEpilogue<Arrival::kMasked, false, kStride>{pass, first});
    case Arrival::kJoined:
      if (skip) return use(BackwardEpilogue<Arrival::kJoined, true, 1>{pass, first});
      return use(BackwardEpilogue<Arrival::kJoined, false, 1>{pass, first});
    case Arrival::kPlain:
      if (skip) return use(BackwardEpilogue<Arrival::kPlain, true, kStride>{pass, first});
      return use(BackwardEpilogue<Arrival::kPlain, false, kStride>{pass, first});
  }
}

}  // namespace
}  // namespace pathnet
