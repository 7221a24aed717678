#pragma once
// The operands of tensor-core products: what a value is in memory, and which instruction multiplies
// it.
#include "ptx.cuh"

namespace pathnet {

struct Bf16 {
  using Element = uint16_t;
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
};

struct Fp16 {
  using Element = uint16_t;
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
};

struct Tf32 {  // float32 in memory, 10 bits of mantissa in a product
  using Element = float;
  static __device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4],
                                                  unsigned b0, unsigned b1) {
    mma_tf32(d, a, b0, b1);
  }
  static __device__ __forceinline__ float load(const Element* p) { return *p; }
  static __device__ __forceinline__ void store(Element* p, float value) { *p = value; }
  static __device__ __forceinline__ void store_pair(void* p, float low, float high) {
    *static_cast<float2*>(p) = make_float2(round_tf32(low), round_tf32(high));
  }
};

}  // namespace pathnet
