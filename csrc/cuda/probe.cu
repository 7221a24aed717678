// probe(x) writes the compute capability that its kernel was compiled for (__CUDA_ARCH__, 900
// for 9.0) into an int32 tensor of x's shape. The doctor calls it on every GPU: the answer proves
// that a kernel of this build was chosen, launched and finished there. Compiled here; it has not
// been run on a GPU yet.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "probe.cuh"

namespace pathnet {
namespace {

using torch::stable::Tensor;

Tensor probe_cuda(const Tensor& x) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor out = torch::stable::new_empty(x, x.sizes(), torch::headeronly::ScalarType::Int);
  const int64_t count = out.numel();
  if (count == 0) return out;
  const int64_t blocks = (count + kProbeThreads - 1) / kProbeThreads;
  STD_TORCH_CHECK(blocks <= INT32_MAX, "probe: x must have at most ",
                  int64_t{INT32_MAX} * kProbeThreads, " elements, got ", count,
                  ". Pass a smaller tensor.");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  probe_kernel<<<static_cast<unsigned>(blocks), kProbeThreads, 0,
                 static_cast<cudaStream_t>(stream)>>>(count, out.mutable_data_ptr<int32_t>());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace
}  // namespace pathnet

STABLE_TORCH_LIBRARY_IMPL(pathnet, CUDA, m) { m.impl("probe", TORCH_BOX(&pathnet::probe_cuda)); }
