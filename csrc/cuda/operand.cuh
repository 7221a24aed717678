#pragma once
// The operands of tensor-core products: what a value is in memory, and which instruction multiplies
// it.
#include "ptx.cuh"

namespace pathnet {

struct Bf16 {
  using Element = uint16_t;
  using Pair = unsigned;             // two neighbours in memory, as they are stored
  static constexpr int kDepth = 16;  // of a product
  static __device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4],
                                                  unsigned b0, unsigned b1) {
    mma_bf16(d, a, b0, b1);
  }
  static __device__ __forceinline__ float load(const Element* p) { return unpack_bf16(*p); }
  static __device__ __forceinline__ void store(Element* p, float value) {
    *p = pack_bf16(value, 0.f) & 0xffff;
  }
  static __device__ __forceinline__ void store_pair(void* p, float low, float high) {
    *static_cast<unsigned*>(p) = pack_bf16(low, high);
  }
  static __device__ __forceinline__ float factor(float value) { return value; }
  static __device__ __forceinline__ Pair pack(float low, float high) {
    return pack_bf16(low, high);
  }
  static __device__ __forceinline__ float2 unpack(Pair pair) {
    return make_float2(unpack_bf16(pair & 0xffff), unpack_bf16(pair >> 16));
  }
};

struct Fp16 {
  using Element = uint16_t;
  using Pair = unsigned;             // two neighbours in memory, as they are stored
  static constexpr int kDepth = 16;  // of a product
  static __device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4],
                                                  unsigned b0, unsigned b1) {
    mma_fp16(d, a, b0, b1);
  }
  static __device__ __forceinline__ float load(const Element* p) { return unpack_fp16(*p); }
  static __device__ __forceinline__ void store(Element* p, float value) {
    *p = pack_fp16(value, 0.f) & 0xffff;
  }
  static __device__ __forceinline__ void store_pair(void* p, float low, float high) {
    *static_cast<unsigned*>(p) = pack_fp16(low, high);
  }
  static __device__ __forceinline__ float factor(float value) { return value; }
  static __device__ __forceinline__ Pair pack(float low, float high) {
    return pack_fp16(low, high);
  }
  static __device__ __forceinline__ float2 unpack(Pair pair) {
    return make_float2(unpack_fp16(pair & 0xffff), unpack_fp16(pair >> 16));
  }
};

struct Tf32 {  // float32 in memory, 10 bits of mantissa in a product
  using Element = float;
  using Pair = float2;
  static constexpr int kDepth = 8;
  static __device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4],
                                                  unsigned b0, unsigned b1) {
    mma_tf32(d, a, b0, b1);
  }
  static __device__ __forceinline__ float load(const Element* p) { return *p; }
  static __device__ __forceinline__ void store(Element* p, float value) { *p = value; }
  static __device__ __forceinline__ void store_pair(void* p, float low, float high) {
    *static_cast<float2*>(p) = make_float2(round_tf32(low), round_tf32(high));
  }
  // What a product makes of a value that is stored as `Element`.
  static __device__ __forceinline__ float factor(float value) { return round_tf32(value); }
  static __device__ __forceinline__ Pair pack(float low, float high) {
    return make_float2(low, high);
  }
  static __device__ __forceinline__ float2 unpack(Pair pair) { return pair; }
};

}  // namespace pathnet
