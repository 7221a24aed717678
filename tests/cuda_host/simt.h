#pragma once
// CUDA's names, executed on the host: kernels of csrc/cuda/ include this file where nvcc does not
// compile them.
//
// Each CUDA thread is a fiber of one process, and several thread blocks are resident at once. A
// thread runs until it waits for others, at a barrier or at a call that a whole warp makes, or
// comes to an atomic; who runs next is drawn by a schedule. In check mode every access of memory is
// looked up in a shadow that knows who wrote and read each byte, and when (check.cpp).
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __host__
#define __grid_constant__
#define __restrict__ __restrict

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace simt {

struct Where {  // a place in the kernel's source
  const char* file;
  int line;
};
#define SIMT_AT \
  const char *file = __builtin_FILE(), int line = __builtin_LINE()  // last parameters of a call

struct Thread {
  dim3 index, block, block_size, grid_size;
  int number, lane, warp;
  int slot;  // of its block, among those that are resident
};
extern Thread* current;

// ---- what threads do together (scheduler.cpp)
// ----------------------------------------------------------------------
using WarpFunction =
    void (*)(void* const* lanes);  // 32 arguments, null for a lane that does not take part
void barrier(Where at);
void meet(unsigned mask, WarpFunction run, void* mine, Where at);
void* shared_memory();
int launch(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* arguments,
           size_t bytes);

template <class Body>
int launch(dim3 grid, dim3 block, size_t shared_bytes, Body body) {
  return launch(
      grid, block, shared_bytes, [](void* it) { (*static_cast<Body*>(it))(); }, &body,
      sizeof(Body));
}

// ---- memory (check.cpp)
// --------------------------------------------------------------------------------------------
void touch(const void* address, int bytes, bool write,
           Where at);  // an access that the compiler does not see
void copy_async(void* to, const void* from, int bytes, Where at);
void commit_async();
void wait_async(int groups_left);

// ---- atomics (atomics.cpp) and fences (order.cpp)
// ------------------------------------------------------------------------------
enum Order { kRelaxed, kAcquireRelease };
int atomic_add(int* address, int value, Order order, Where at);
unsigned atomic_add(unsigned* address, unsigned value, Order order, Where at);
float atomic_add(float* address, float value, Order order, Where at);
void fence();  // of all threads of the grid

// ---- calls of a whole warp (warp.cpp)
// ------------------------------------------------------------------------------
struct Shuffle {
  unsigned value, source, result;
};
struct Matrix {  // ldmatrix: a row of 16 bytes in, a quarter of four 8x8 matrices out
  unsigned* result;
  const void* row;
};
struct Product {  // mma: d += a b
  float* d;
  const unsigned *a, *b;
};
void shuffle(void* const* lanes);
void nothing(void* const* lanes);
void load_matrices(void* const* lanes);
void load_matrices_transposed(void* const* lanes);  // of 2-byte elements
void multiply_bf16(void* const* lanes);
void multiply_fp16(void* const* lanes);
void multiply_tf32(void* const* lanes);

float from_bf16(uint16_t bits);
uint16_t to_bf16(float value);

}  // namespace simt

#define threadIdx (simt::current->index)
#define blockIdx (simt::current->block)
#define blockDim (simt::current->block_size)
#define gridDim (simt::current->grid_size)

inline void __threadfence() { simt::fence(); }
inline int atomicAdd(int* address, int value, SIMT_AT) {
  return simt::atomic_add(address, value, simt::kRelaxed, {file, line});
}
inline unsigned atomicAdd(unsigned* address, unsigned value, SIMT_AT) {
  return simt::atomic_add(address, value, simt::kRelaxed, {file, line});
}
inline float atomicAdd(float* address, float value, SIMT_AT) {
  return simt::atomic_add(address, value, simt::kRelaxed, {file, line});
}

inline void __syncthreads(SIMT_AT) { simt::barrier({file, line}); }
inline void __syncwarp(unsigned mask = ~0u, SIMT_AT) {
  simt::meet(mask, simt::nothing, nullptr, {file, line});
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, SIMT_AT) {
  static_assert(sizeof(T) == 4, "shuffles here move four bytes");
  simt::Shuffle mine{0, static_cast<unsigned>(simt::current->lane ^ bits), 0};
  std::memcpy(&mine.value, &value, 4);
  simt::meet(mask, simt::shuffle, &mine, {file, line});
  std::memcpy(&value, &mine.result, 4);
  return value;
}

template <class T>
__forceinline__ T __ldg(const T* address) {
  return *address;
}
template <class T>
__forceinline__ T __ldcg(const T* address) {
  return *address;
}
using std::max;
using std::memcpy;
using std::min;
