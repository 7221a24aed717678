#pragma once
// net_eval: the launch. Each type of operands is compiled by itself, in net_eval_<type>.cu, so that
// several compilers share the work.
#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>

#include "net_eval_forms.cuh"

namespace pathnet {

template <class Op, bool kPreact, class F>
void launch_net_eval(const NetEvalPlan& plan, int rows, cudaStream_t stream) {
  const auto kernel = net_eval_kernel<Op, kPreact, F::kWidth, F::kTiles>;
  const int64_t bytes =
      kRingBytes + tile_bytes<F>(sizeof(typename Op::Element), plan.height, plan.width);
  const cudaError_t allowed = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  STD_TORCH_CHECK(allowed == cudaSuccess, "net_eval: this GPU cannot give a thread block ", bytes,
                  " bytes of shared memory. Pass smaller images, or float16 or bfloat16.");
  kernel<<<rows, kThreads, bytes, stream>>>(plan);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// width: channels of the first stage.
template <class Op>
void launch_net_eval(NetEvalPlan& plan, int width, bool projects, bool preact, int rows,
                     cudaStream_t stream) {
  const bool there = with_form(width, plan.height, plan.width, [&](auto form) {
    using F = decltype(form);
    NetEval<Op, false, F::kWidth, F::kTiles>::count_shortcut_slices(plan, projects);
    preact ? launch_net_eval<Op, true, F>(plan, rows, stream)
           : launch_net_eval<Op, false, F>(plan, rows, stream);
  });
  STD_TORCH_CHECK(there, "net_eval: no kernel takes images of ", plan.height, "x", plan.width,
                  " with ", width, " channels in the first stage. Pass smaller images.");
}

#define PATHNET_NET_EVAL(prefix, Op) \
  prefix template void launch_net_eval<Op>(NetEvalPlan&, int, bool, bool, int, cudaStream_t);

}  // namespace pathnet
