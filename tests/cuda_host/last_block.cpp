// Kernels whose thread blocks meet, for tests/test_cuda_host.py: the last one to arrive adds what
// all have left in slots. WITHOUT names what is left out of one.
#include "simt.h"

#define BARRIER 1
#define LAST_BARRIER 2
#define RELEASE 3
#define ACQUIRE 4
#define OWN_SLOT 5
#ifndef WITHOUT
#define WITHOUT 0
#endif

// Every thread leaves a value in its block's slot, thread 0 arrives, and block by block the order
// of arrival is noted. By fences around a relaxed addition, or by one that acquires and releases.
static void sum_slots(const float* values, float* slots, int* counter, int* arrival, float* sum,
                      bool fences) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const int slot = WITHOUT == OWN_SLOT ? threadIdx.x : i;
  slots[slot] = 2.f * values[i];
  if (WITHOUT != BARRIER) __syncthreads();
  int* arrived = static_cast<int*>(simt::shared_memory());
  if (threadIdx.x == 0) {
    const simt::Order order = WITHOUT == RELEASE ? simt::kRelaxed : simt::kAcquireRelease;
    if (fences && WITHOUT != RELEASE) __threadfence();
    *arrived = fences ? atomicAdd(counter, 1) : simt::atomic_add(counter, 1, order, {"", 0});
    if (fences && WITHOUT != ACQUIRE) __threadfence();
    arrival[blockIdx.x] = *arrived;
  }
  if (WITHOUT != LAST_BARRIER) __syncthreads();
  if (*arrived != static_cast<int>(gridDim.x) - 1) return;
  float mine = 0.f;
  for (unsigned block = 0; block < gridDim.x; ++block)
    mine += slots[block * blockDim.x + threadIdx.x];
  sum[threadIdx.x] = mine;
  if (threadIdx.x == 0) *counter = 0;
}

// n: thread blocks, threads, whether by fences
extern "C" int sum(const float* values, float* slots, int* counter, int* arrival, float* sum,
                   const int64_t* n) {
  const bool fences = n[2] != 0;
  return simt::launch(dim3(n[0]), dim3(n[1]), sizeof(int),
                      [=] { sum_slots(values, slots, counter, arrival, sum, fences); });
}

// Each thread block counts itself in and out, and notes how many were there.
extern "C" int company(int* there, int* most, const int64_t* n) {
  return simt::launch(dim3(n[0]), dim3(n[1]), 0, [=] {
    if (threadIdx.x == 0) most[blockIdx.x] = atomicAdd(there, 1) + 1;
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(there, -1);
  });
}

// y[i] = x[i + 1] where y may be x: threads read what others write.
extern "C" int shift(float* x, float* y, const int64_t* n) {
  return simt::launch(dim3(n[0]), dim3(n[1]), 0, [=] {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const float next = x[(i + 1) % (gridDim.x * blockDim.x)];
    __syncthreads();
    y[i] = next;
  });
}
