// Vectors of the instruction set that is being compiled. A file that includes this has first chosen
// its instructions (#pragma GCC target) and defined PATHNET_LANES, the floats of one register.
// Everything stands in an anonymous namespace: code for one instruction set must never be linked
// into another.
#pragma once
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "image.h"

namespace pathnet {
namespace {

constexpr int kLanes = PATHNET_LANES;
constexpr int kRegisters = kBlock / kLanes;  // that hold one block of channels

using Vector = float __attribute__((vector_size(kLanes * sizeof(float)), may_alias));

#define PATHNET_INLINE inline __attribute__((always_inline))

PATHNET_INLINE Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
PATHNET_INLINE void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }

// The same where memory is not ours and so not aligned.
using LooseVector =
    float __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
PATHNET_INLINE Vector load_loose(const float* p) {
  return *reinterpret_cast<const LooseVector*>(p);
}
PATHNET_INLINE void store_loose(float* p, Vector v) { *reinterpret_cast<LooseVector*>(p) = v; }

PATHNET_INLINE Vector relu(Vector v) { return v < 0.0f ? Vector{} : v; }  // NaN stays NaN

// a * b + c, rounded once where the instructions have it.
PATHNET_INLINE Vector multiply_add(float a, Vector b, Vector c) {
#if PATHNET_LANES == 16
  return (Vector)_mm512_fmadd_ps(_mm512_set1_ps(a), (__m512)b, (__m512)c);
#elif PATHNET_LANES == 8
  return (Vector)_mm256_fmadd_ps(_mm256_set1_ps(a), (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// One bit a lane: v > 0.
PATHNET_INLINE unsigned positive(Vector v) {
#if PATHNET_LANES == 16
  return _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_GT_OQ);
#elif PATHNET_LANES == 8
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_setzero_ps(), _CMP_GT_OQ));
#else
  unsigned bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= static_cast<unsigned>(v[lane] > 0.0f) << lane;
  return bits;
#endif
}

// v where the lane's bit is set, else zero.
PATHNET_INLINE Vector keep(Vector v, unsigned bits) {
#if PATHNET_LANES == 16
  return (Vector)_mm512_maskz_mov_ps(static_cast<__mmask16>(bits), (__m512)v);
#else
  using Integers = int32_t __attribute__((vector_size(kLanes * sizeof(float))));
  Integers lane_bit;
  for (int lane = 0; lane < kLanes; ++lane) lane_bit[lane] = 1 << lane;
  return (lane_bit & static_cast<int32_t>(bits)) != 0 ? v : Vector{};
#endif
}

// A store past the caches, for what is not read again soon.
PATHNET_INLINE void stream(float* p, Vector v) {
#if PATHNET_LANES == 16
  _mm512_stream_ps(p, (__m512)v);
#elif PATHNET_LANES == 8
  _mm256_stream_ps(p, (__m256)v);
#elif defined(__x86_64__)
  _mm_stream_ps(p, (__m128)v);
#else
  store(p, v);
#endif
}

// The same where other lines are written before the rest of this one: part of a line alone costs
// more past the caches than through them.
PATHNET_INLINE void stream_line(float* p, Vector v) {
  kRegisters == 1 ? stream(p, v) : store(p, v);
}

// Orders streamed stores before what follows: due before another thread reads them.
PATHNET_INLINE void finish_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace pathnet
