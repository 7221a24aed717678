// Weights of 3x3 convolutions in the Winograd domain, rounded to bf16.
#pragma once
#include "product_bf16.h"
#include "weights.h"

namespace pathnet {
namespace {

using Bf16Vector = Bf16 __attribute__((vector_size(kBlock * sizeof(Bf16)), may_alias));
using WordVector = uint32_t __attribute__((vector_size(kBlock * sizeof(uint32_t)), may_alias));

// 16 numbers, rounded to the nearest.
PATHNET_INLINE Bf16Vector to_bf16(Vector v) { return (Bf16Vector)_mm512_cvtneps_pbh((__m512)v); }

// Numbers from one position's weights to the next one's: a line apart, as position_floats.
constexpr int64_t position_numbers(int64_t in_blocks, int64_t out_blocks) {
  return in_blocks * kBlock * out_blocks * kBlock + kPair;
}

// The output block `block` of w, at `place` in u: [positions][groups of kAmxWidest blocks of output
// channels][pairs of blocks of input channels][blocks in the group][square], as
// multiply_position_bf16 reads it.
inline void transform_weight_block_bf16(const WeightView& w, const Taps& taps,
                                        const Placement& place, int64_t block, Bf16* u) {
  const int64_t in_channels = place.in_blocks * kBlock;
  const int64_t position_stride = position_numbers(place.in_blocks, place.out_blocks);
  const int64_t column = place.first_out + block, group = column / kAmxWidest * kAmxWidest;
  const int64_t wide = std::min<int64_t>(kAmxWidest, place.out_blocks - group);
  Bf16* to = u + group * kBlock * in_channels;
  transform_weight_block(
      w, taps, block, [=](int64_t c, int, int position, Vector v) __attribute__((always_inline)) {
        const int64_t channel = place.first_in * kBlock + c, pair = channel / kPair * kPair;
        const int64_t square = std::min<int64_t>(kPair, in_channels - pair) * kBlock;
        auto* row =
            reinterpret_cast<WordVector*>(to + position * position_stride + pair * wide * kBlock +
                                          (column - group) * square + (channel - pair) / 2 * kPair);
        const WordVector bits = __builtin_convertvector(to_bf16(v), WordVector);
        *row = c % 2 == 0 ? bits : *row | bits << 16;  // the even channel comes first
      });
}

}  // namespace
}  // namespace pathnet
