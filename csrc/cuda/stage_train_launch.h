#pragma once
// stage_train: the launches of a run on a stream. Each type of activations is compiled by itself,
// in stage_train_<type>.cu.
#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>

#include "stage_train_traffic.h"

namespace pathnet::train {

struct StreamLaunch {
  cudaStream_t stream;

  template <class Kernel, class Plan>
  void operator()(Pass, Kernel* kernel, int blocks, int threads, int64_t shared,
                  const Plan& plan) const {
    const cudaError_t allowed = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    STD_TORCH_CHECK(allowed == cudaSuccess, "stage_train: this GPU cannot give a thread block ",
                    shared, " bytes of shared memory. Train smaller images, or in float16.");
    kernel<<<blocks, threads, shared, stream>>>(plan);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

template <class Op>
void launch_forward(const RunPlan& run, int channels, void* y, cudaStream_t stream) {
  StreamLaunch launch{stream};
  if (channels == 16) return run_forward<Op, 16>(run, y, launch);
  if (channels == 32) return run_forward<Op, 32>(run, y, launch);
  run_forward<Op, 64>(run, y, launch);
}

template <class Op>
void launch_backward(const RunPlan& run, int channels, const BackwardRun& outside,
                     cudaStream_t stream, int& of_x, int& of_skip) {
  StreamLaunch launch{stream};
  if (channels == 16) return run_backward<Op, 16>(run, outside, launch, of_x, of_skip);
  if (channels == 32) return run_backward<Op, 32>(run, outside, launch, of_x, of_skip);
  run_backward<Op, 64>(run, outside, launch, of_x, of_skip);
}

template <class Op>
std::vector<int64_t> count_launches(int channels, const int64_t* numbers, bool backward) {
  if (channels == 16) return count_launches<Op, 16>(numbers, backward);
  if (channels == 32) return count_launches<Op, 32>(numbers, backward);
  return count_launches<Op, 64>(numbers, backward);
}

#define PATHNET_STAGE_TRAIN(prefix, Op)                                                           \
  prefix template void launch_forward<Op>(const RunPlan&, int, void*, cudaStream_t);              \
  prefix template void launch_backward<Op>(const RunPlan&, int, const BackwardRun&, cudaStream_t, \
                                           int&, int&);                                           \
  prefix template std::vector<int64_t> count_launches<Op>(int, const int64_t*, bool);

}  // namespace pathnet::train
