// The passes over a stem, written once for every instruction set. A file that includes this has
// first chosen its instructions and defined PATHNET_LANES and PATHNET_TABLE, the name of the table
// that it defines.
#pragma once
#include <algorithm>

#include "simd.h"
#include "stem_convolve.h"
#include "stem_kernels.h"

namespace pathnet {
namespace {

using Winners = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));
using WinnerBytes = uint8_t __attribute__((vector_size(kLanes), aligned(1), may_alias));

PATHNET_INLINE Winners load_winners(const uint8_t* p) {
  return __builtin_convertvector(*reinterpret_cast<const WinnerBytes*>(p), Winners);
}
PATHNET_INLINE void store_winners(uint8_t* p, Winners winners) {
  *reinterpret_cast<WinnerBytes*>(p) = __builtin_convertvector(winners, WinnerBytes);
}

// The two sums of a row, for all channels.
struct RowSums {
  float *first, *second;

  RowSums(const Stem& stem, int64_t row)
      : first(stem.sums + (row * kSums + 1) * stem.channels), second(first + stem.channels) {
    std::fill_n(first, 2 * stem.channels, 0.0f);
  }
  PATHNET_INLINE void add(int64_t c, Vector a, Vector b) const {
    store(first + c, load(first + c) + a);
    store(second + c, load(second + c) + b);
  }
};

// Sums of a row of u around its first value.
void sum_up(const Stem& stem, int64_t row) {
  const int64_t channels = stem.channels;
  const float *shift = stem.u + row * stem.width * channels, *u = shift;
  std::copy_n(shift, channels, stem.sums + row * kSums * channels);
  const RowSums sums(stem, row);
  for (int64_t j = 0; j < stem.width; ++j, u += channels)
    for (int64_t c = 0; c < channels; c += kLanes) {
      const Vector v = load_loose(u + c) - load_loose(shift + c);
      sums.add(c, v, v * v);
    }
}

// norm(u) of the pixel at `at`.
PATHNET_INLINE Vector normed(const Stem& stem, int64_t at, int64_t c) {
  return load_loose(stem.u + at + c) * load(stem.norm.scale + c) + load(stem.norm.shift + c);
}

// The maximum of a window and who has it. It begins at 0, which is the ReLU; the first of equal
// taps wins, and NaN wins over all, as in PyTorch.
struct Maximum {
  Vector value = {};
  Winners winner = Winners{} + kNoWinner;

  PATHNET_INLINE void meet(Vector v, int32_t tap) {
    const Winners wins = (v > value) | (v != v);
    value = wins ? v : value;
    winner = wins ? Winners{} + tap : winner;
  }
};

// The taps of a window that lie in the image, in one direction.
struct Range {
  int64_t from = 0, to = kWindow;

  static Range of(int64_t start, int64_t side) {
    return {start < 0 ? -start : 0, std::min(kWindow, side - start)};
  }
  bool is_whole() const { return from == 0 && to == kWindow; }
};

// The pooled value at `at` of a window whose first tap is at `start`, for all channels.
PATHNET_INLINE void pool_window(const Stem& stem, int64_t start, Range rows, Range columns,
                                int64_t at) {
  for (int64_t c = 0; c < stem.channels; c += kLanes) {
    const Vector scale = load(stem.norm.scale + c), shift = load(stem.norm.shift + c);
    Maximum maximum;
    for (int64_t a = rows.from; a < rows.to; ++a)
      for (int64_t b = columns.from; b < columns.to; ++b) {
        const int64_t pixel = start + (a * stem.width + b) * stem.channels;
        maximum.meet(load_loose(stem.u + pixel + c) * scale + shift,
                     static_cast<int32_t>(a * kWindow + b));
      }
    stream(stem.y + at + c, maximum.value);
    store_winners(stem.winners + at + c, maximum.winner);
  }
}

void pool(const Stem& stem, int64_t row) {
  const int64_t image = row / pooled(stem.height), i = 2 * (row % pooled(stem.height)) - 1;
  const Range rows = Range::of(i, stem.height);
  for (int64_t left = -1, at = row * pooled(stem.width) * stem.channels; left < stem.width - 1;
       left += 2, at += stem.channels) {
    const Range columns = Range::of(left, stem.width);
    const int64_t start = ((image * stem.height + i) * stem.width + left) * stem.channels;
    if (rows.is_whole() && columns.is_whole())
      pool_window(stem, start, {}, {}, at);  // constants, which unroll its loops
    else
      pool_window(stem, start, rows, columns, at);
  }
  finish_streams();
}

// ReLU(norm(u)) of a row, where nothing is pooled.
void activate(const Stem& stem, int64_t row) {
  const int64_t floats = stem.width * stem.channels, end = (row + 1) * floats;
  for (int64_t at = row * floats; at < end; at += stem.channels)
    for (int64_t c = 0; c < stem.channels; c += kLanes)
      stream(stem.y + at + c, relu(normed(stem, at, c)));
  finish_streams();
}

// The windows that see a row or column of u: one where its number is even, else two, the second of
// which may lie behind the last.
struct Windows {
  int64_t first;
  int32_t tap;  // the place in the first; in the second it is 0
  bool two;

  Windows(int64_t at, int64_t side)
      : first(at / 2),
        tap(static_cast<int32_t>(1 + at % 2)),
        two(at % 2 == 1 && first + 1 < pooled(side)) {}
};

// Calls visit(channel, gradient of norm(u)) at a pixel: the sum over the windows, the first of them
// at `first`, in which the pixel has the maximum.
template <int kRows, int kColumns, typename Visit>
PATHNET_INLINE void gather(const Stem& stem, int64_t first, int32_t row_tap, int32_t column_tap,
                           const Visit& visit) {
  const int64_t pooled_row = pooled(stem.width) * stem.channels;
  for (int64_t c = 0; c < stem.channels; c += kLanes) {
    Vector g{};
#pragma GCC unroll 2
    for (int a = 0; a < kRows; ++a)
#pragma GCC unroll 2
      for (int b = 0; b < kColumns; ++b) {
        const int64_t at = first + a * pooled_row + b * stem.channels + c;
        const int32_t tap = (a == 0 ? row_tap : 0) * kWindow + (b == 0 ? column_tap : 0);
        const Winners wins = load_winners(stem.winners + at) == tap;
        g += wins ? load_loose(stem.gradient.g + at) : Vector{};
      }
    visit(c, g);
  }
}

// Calls visit(channel, offset in u, gradient of norm(u)) along a row of u.
template <int kRows, typename Visit>
PATHNET_INLINE void for_columns(const Stem& stem, int64_t row, const Windows& rows,
                                const Visit& visit) {
  const int64_t pooled_row = row / stem.height * pooled(stem.height) + rows.first;
  for (int64_t j = 0, at = row * stem.width * stem.channels; j < stem.width;
       ++j, at += stem.channels) {
    const Windows columns(j, stem.width);
    const int64_t first = (pooled_row * pooled(stem.width) + columns.first) * stem.channels;
    const auto here = [&](int64_t c, Vector g) { visit(c, at + c, g); };
    if (columns.two)
      gather<kRows, 2>(stem, first, rows.tap, columns.tap, here);
    else
      gather<kRows, 1>(stem, first, rows.tap, columns.tap, here);
  }
}

// The same where nothing is pooled.
template <typename Visit>
PATHNET_INLINE void for_activated(const Stem& stem, int64_t row, const Visit& visit) {
  const int64_t floats = stem.width * stem.channels, end = (row + 1) * floats;
  for (int64_t at = row * floats; at < end; at += stem.channels)
    for (int64_t c = 0; c < stem.channels; c += kLanes)
      visit(c, at + c,
            normed(stem, at, c) <= 0.0f ? Vector{} : load_loose(stem.gradient.g + at + c));
}

template <typename Visit>
PATHNET_INLINE void for_gradients(const Stem& stem, int64_t row, const Visit& visit) {
  if (stem.winners == nullptr) return for_activated(stem, row, visit);
  const Windows rows(row % stem.height, stem.height);
  if (rows.two)
    for_columns<2>(stem, row, rows, visit);
  else
    for_columns<1>(stem, row, rows, visit);
}

// Sums of g and g * (u - mean) over a row, g being the gradient of norm(u).
void sum_up_gradient(const Stem& stem, int64_t row) {
  const RowSums sums(stem, row);
  for_gradients(stem, row, [&](int64_t c, int64_t at, Vector g) {
    sums.add(c, g, g * (load_loose(stem.u + at) - load(stem.mean + c)));
  });
}

// The gradient of a row of u.
void pass_back(const Stem& stem, int64_t row) {
  const NormGradient& norm = stem.gradient;
  for_gradients(stem, row, [&](int64_t c, int64_t at, Vector g) {
    stream(stem.du + at,
           load(norm.a + c) * g + load(norm.b + c) * load_loose(stem.u + at) + load(norm.c + c));
  });
  finish_streams();
}

}  // namespace

extern const StemKernels PATHNET_TABLE = {
    sum_up, pool, activate, sum_up_gradient, pass_back, convolve_stem_row, pool_stem_row};

}  // namespace pathnet
