#pragma once
// The instructions that C++ has no word for, each in a function of its own name. Kernels use no
// other inline assembly.
//
// Where nvcc does not compile them, simt.h of tests/cuda_host gives the same functions a twin on
// the host; it also says what a fragment is. Layouts: PTX manual, "Matrix Fragments for
// mma.m16n8k16" and "mma.m16n8k8", "ldmatrix".
#include <cstdint>

#ifndef __CUDACC__
#include "simt.h"
#endif

namespace pathnet {

#ifdef __CUDACC__

__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// 16 bytes from global to shared memory, past the L1 cache: every thread block reads them once.
__device__ __forceinline__ void copy_async_16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kGroupsLeft>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

// Four 8x8 matrices of 2 bytes, or 8x4 of 4 bytes: lane l gives the address of row l % 8 of matrix
// l / 8 and gets the four bytes at column l % 4 of row l / 4 of each.
__device__ __forceinline__ void load_matrices(unsigned (&d)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same of 2-byte elements, each matrix transposed: lane l gets rows l % 4 * 2 and the next of
// column l / 4.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&d)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(shared_address(row))
               : "memory");
}

// Adds to a counter in global memory, and returns what stood there: what other threads did before
// their additions is visible afterwards.
__device__ __forceinline__ int add_acquire_release(int* counter, int value) {
  int before;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(counter)), "r"(value)
               : "memory");
  return before;
}

// d[16, 8] += a[16, k] b[k, 8], k = 16 for two bytes and 8 for four.
#define PATHNET_MMA(name, shape)                                                           \
  __device__ __forceinline__ void name(float (&d)[4], const unsigned (&a)[4], unsigned b0, \
                                       unsigned b1) {                                      \
    asm volatile("mma.sync.aligned." shape                                                 \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"        \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));          \
  }
PATHNET_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
PATHNET_MMA(mma_fp16, "m16n8k16.row.col.f32.f16.f16.f32")
PATHNET_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef PATHNET_MMA

__device__ __forceinline__ float relu(float value) {  // NaN stays NaN, unlike fmaxf
  float d;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(d) : "f"(value));
  return d;
}

// The value itself, of which the compiler knows nothing: what follows from it is not computed early
// and kept.
__device__ __forceinline__ int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Two floats rounded to the nearest and packed, `low` into the lower half.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
  unsigned d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
__device__ __forceinline__ unsigned pack_fp16(float low, float high) {
  unsigned d;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
__device__ __forceinline__ float round_tf32(float value) {
  unsigned d;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(d) : "f"(value));
  return __uint_as_float(d);
}
__device__ __forceinline__ float unpack_bf16(uint16_t bits) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}
__device__ __forceinline__ float unpack_fp16(uint16_t bits) {
  float d;
  asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(bits));
  return d;
}

#else  // ---- the twins on the host
       // --------------------------------------------------------------------------------

inline unsigned char* dynamic_shared() {
  return static_cast<unsigned char*>(simt::shared_memory());
}
inline void copy_async_16(void* to, const void* from, SIMT_AT) {
  simt::copy_async(to, from, 16, {file, line});
}
inline void copy_async_commit() { simt::commit_async(); }
template <int kGroupsLeft>
void copy_async_wait() {
  simt::wait_async(kGroupsLeft);
}
inline void load_matrices(unsigned (&d)[4], const void* row, SIMT_AT) {
  simt::touch(row, 16, false, {file, line});
  simt::Matrix mine{d, row};
  simt::meet(~0u, simt::load_matrices, &mine, {file, line});
}
inline void load_matrices_transposed(unsigned (&d)[4], const void* row, SIMT_AT) {
  simt::touch(row, 16, false, {file, line});
  simt::Matrix mine{d, row};
  simt::meet(~0u, simt::load_matrices_transposed, &mine, {file, line});
}
inline int add_acquire_release(int* counter, int value, SIMT_AT) {
  return simt::atomic_add(counter, value, simt::kAcquireRelease, {file, line});
}
#define PATHNET_MMA(name, twin)                                                                \
  inline void name(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, SIMT_AT) { \
    const unsigned b[2] = {b0, b1};                                                            \
    simt::Product mine{d, a, b};                                                               \
    simt::meet(~0u, simt::twin, &mine, {file, line});                                          \
  }
PATHNET_MMA(mma_bf16, multiply_bf16)
PATHNET_MMA(mma_fp16, multiply_fp16)
PATHNET_MMA(mma_tf32, multiply_tf32)
#undef PATHNET_MMA

inline int opaque(int value) { return value; }
inline float relu(float value) { return value < 0.f ? 0.f : value; }
inline unsigned pack_bf16(float low, float high) {
  return simt::to_bf16(low) | simt::to_bf16(high) << 16;
}
inline unsigned pack_fp16(float low, float high) {
  const _Float16 pair[2] = {static_cast<_Float16>(low), static_cast<_Float16>(high)};
  unsigned d;
  std::memcpy(&d, pair, 4);
  return d;
}
inline float round_tf32(float value) {  // to the nearest, ties away from zero
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0x1000u) & 0xffffe000u;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float unpack_bf16(uint16_t bits) { return simt::from_bf16(bits); }
inline float unpack_fp16(uint16_t bits) {
  _Float16 value;
  std::memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}
#endif

}  // namespace pathnet
