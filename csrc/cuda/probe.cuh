#pragma once
// What the doctor launches: each thread writes the chip that it was compiled for.
#include <cstdint>

namespace pathnet {

constexpr int kProbeThreads = 256;

// out [count] = __CUDA_ARCH__, 900 for 9.0; one thread an element.
__global__ void __launch_bounds__(kProbeThreads) probe_kernel(int64_t count, int32_t* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kProbeThreads + threadIdx.x;
#ifdef __CUDA_ARCH__
  if (i < count) out[i] = __CUDA_ARCH__;
#endif
}

}  // namespace pathnet
