#pragma once
// Eight neighbours of a stream, whose bits are one byte: what a thread of a pass without a product
// takes at a time.
#include "operand.cuh"

namespace pathnet {

constexpr int kRunThreads = 256;
constexpr int kEach = 8;  // elements of a thread: one byte of bits

template <class Op>
struct Eight {  // neighbours in memory, 16 bytes aligned
  using Element = typename Op::Element;
  static constexpr int kWords = kEach * sizeof(Element) / 16;
  Element at[kEach];

  __device__ __forceinline__ void load(const Element* from) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const uint4 word = reinterpret_cast<const uint4*>(from)[i];
      memcpy(at + i * kEach / kWords, &word, 16);
    }
  }
  __device__ __forceinline__ void store(Element* to) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      uint4 word;
      memcpy(&word, at + i * kEach / kWords, 16);
      reinterpret_cast<uint4*>(to)[i] = word;
    }
  }
};

}  // namespace pathnet
