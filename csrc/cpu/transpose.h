// Transposes in registers: between channels in planes and channels in vectors, and of weights.
#pragma once
#include <utility>

#include "simd.h"

namespace pathnet {
namespace {

using Indices = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));

// a0 b0 a1 b1 ... of the lower or upper halves of a and b
template <bool kUpper, int... i>
PATHNET_INLINE Vector interleave(Vector a, Vector b, std::integer_sequence<int, i...>) {
  constexpr int kFirst = kUpper ? kLanes / 2 : 0;
  return __builtin_shuffle(a, b, Indices{(kFirst + i / 2 + (i % 2) * kLanes)...});
}

// Interleaving the rows of the two halves moves one bit of the row number into the column number:
// after log2(kLanes) steps they have changed places.
PATHNET_INLINE void transpose(Vector rows[kLanes]) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
#pragma GCC unroll 4
  for (int step = 1; step < kLanes; step *= 2) {
    Vector mixed[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) {
      mixed[2 * i] = interleave<false>(rows[i], rows[i + kLanes / 2], lanes);
      mixed[2 * i + 1] = interleave<true>(rows[i], rows[i + kLanes / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = mixed[i];
  }
}

// to[j][i] = from[i][j] for a block of 16 x 16, wherever the rows stand.
inline void transpose_block(const float* from, int64_t from_row, float* to, int64_t to_row) {
  for (int i = 0; i < kBlock; i += kLanes)
    for (int j = 0; j < kBlock; j += kLanes) {
      Vector rows[kLanes];
#pragma GCC unroll 16
      for (int k = 0; k < kLanes; ++k) rows[k] = load_loose(from + (i + k) * from_row + j);
      transpose(rows);
#pragma GCC unroll 16
      for (int k = 0; k < kLanes; ++k) store_loose(to + (j + k) * to_row + i, rows[k]);
    }
}

}  // namespace
}  // namespace pathnet
