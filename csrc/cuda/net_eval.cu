// net_eval: a whole CIFAR ResNet in one launch. This file checks the arguments and launches; the
// kernel stands in net_eval.cuh. Compiled here and executed on the host; it has not been run on a
// GPU yet.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "net_eval_launch.h"

namespace pathnet {

PATHNET_NET_EVAL(extern, Bf16)
PATHNET_NET_EVAL(extern, Fp16)
PATHNET_NET_EVAL(extern, Tf32)

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A dense tensor on x's device; `name` is the argument.
void check_dense(const Tensor& t, const Tensor& x, ScalarType type, const char* name) {
  STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == x.get_device_index(), "net_eval: ", name,
                  " must be on x's device. Move it there.");
  STD_TORCH_CHECK(t.scalar_type() == type && t.is_contiguous(), "net_eval: ", name,
                  " must be dense and of the type that the schema names. Call it through "
                  "pathnet.ops.net_eval.");
}

int narrow(int64_t value, const char* name) {
  STD_TORCH_CHECK(value >= 0 && value <= INT32_MAX, "net_eval: ", name, " must be at most ",
                  INT32_MAX, ", got ", value, ". Pass fewer at a time.");
  return static_cast<int>(value);
}

void launch_net_eval(ScalarType type, NetEvalPlan& plan, int width, bool projects, bool preact,
                     int rows, cudaStream_t stream) {
  if (type == ScalarType::BFloat16)
    return launch_net_eval<Bf16>(plan, width, projects, preact, rows, stream);
  if (type == ScalarType::Half)
    return launch_net_eval<Fp16>(plan, width, projects, preact, rows, stream);
  STD_TORCH_CHECK(type == ScalarType::Float,
                  "net_eval: x must be float32, float16 or bfloat16. Convert it.");
  launch_net_eval<Tf32>(plan, width, projects, preact, rows, stream);
}

void read_images(NetEvalPlan& plan, const Tensor& x) {
  STD_TORCH_CHECK(x.is_cuda() && x.dim() == 4 && x.size(1) >= 1 && x.size(1) <= 16,
                  "net_eval: x must have the shape [N, 1 to 16, H, W] and be on a GPU.");
  plan.images = x.data_ptr();
  for (int d = 0; d < 4; ++d) plan.image_strides[d] = x.stride(d);
  plan.channels = static_cast<int>(x.size(1));
  plan.height = narrow(x.size(2), "the height of x"),
  plan.width = narrow(x.size(3), "the width of x");
}

void read_tables(NetEvalPlan& plan, const Tensor& x, const Tensor& gates, const Tensor& order,
                 const Tensor& scales) {
  check_dense(gates, x, ScalarType::Char, "gates");
  check_dense(order, x, ScalarType::Int, "order");
  check_dense(scales, x, ScalarType::Float, "scales");
  for (const Tensor* table : {&gates, &order, &scales}) {
    STD_TORCH_CHECK(
        table->dim() == 2 && table->size(0) == gates.size(0) && table->size(1) == plan.blocks(),
        "net_eval: gates, order and scales must have the shape [masks, ", plan.blocks(), "].");
  }
  plan.gates = gates.const_data_ptr<int8_t>();
  plan.order = order.const_data_ptr<int>();
  plan.scales = scales.const_data_ptr<float>();
  plan.masks = narrow(gates.size(0), "masks");
}

void read_weights(NetEvalPlan& plan, const Tensor& x, const Tensor& weights,
                  const Tensor& first_slice, const Tensor& vectors, const Tensor& classifier) {
  check_dense(weights, x, ScalarType::Byte, "weights");
  check_dense(first_slice, x, ScalarType::Int, "first_slice");
  check_dense(vectors, x, ScalarType::Float, "vectors");
  check_dense(classifier, x, ScalarType::Float, "classifier");
  STD_TORCH_CHECK(weights.numel() % kSliceBytes == 0 && first_slice.numel() == plan.blocks() + 2 &&
                      vectors.dim() == 3 && vectors.size(0) == plan.blocks() + 1 &&
                      vectors.size(1) == kVectors && vectors.size(2) % 4 == 0 &&
                      classifier.numel() % (vectors.size(2) + 1) == 0,
                  "net_eval: weights, first_slice, vectors and classifier must be those that "
                  "pathnet.ops packs.");
  plan.weights = weights.const_data_ptr<uint8_t>();
  plan.first_slice = first_slice.const_data_ptr<int>();
  plan.vectors = vectors.const_data_ptr<float>();
  plan.classifier = classifier.const_data_ptr<float>();
  plan.classes = narrow(classifier.numel() / (vectors.size(2) + 1), "classes");
}

Tensor net_eval_cuda(const Tensor& x, const Tensor& weights, const Tensor& first_slice,
                     const Tensor& vectors, const Tensor& classifier, const Tensor& gates,
                     const Tensor& order, const Tensor& scales, int64_t repeat,
                     std::vector<int64_t> stage_blocks, int64_t shortcut_slices,
                     std::vector<int64_t> pad_before, bool preact) {
  STD_TORCH_CHECK(stage_blocks.size() == 3 && pad_before.size() == 2 && repeat >= 0,
                  "net_eval: stage_blocks must name three stages, pad_before two, and repeat must "
                  "not be negative.");
  NetEvalPlan plan{};
  for (int i = 0; i < 3; ++i) plan.stage_blocks[i] = narrow(stage_blocks[i], "blocks of a stage");
  for (int i = 0; i < 2; ++i) plan.pad_before[i] = narrow(pad_before[i], "pad_before");
  plan.repeat = narrow(repeat, "repeat");
  read_images(plan, x);
  read_weights(plan, x, weights, first_slice, vectors, classifier);
  read_tables(plan, x, gates, order, scales);
  const int rows = narrow(x.size(0) * repeat, "images times masks");

  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor logits = torch::stable::new_empty(x, {rows, plan.classes});
  if (logits.numel() == 0) return logits;
  STD_TORCH_CHECK(plan.masks > 0, "net_eval: gates must hold at least one row.");
  plan.logits = logits.data_ptr();
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  const int width = static_cast<int>(vectors.size(2) / 4);
  launch_net_eval(x.scalar_type(), plan, width, shortcut_slices > 0, preact, rows,
                  static_cast<cudaStream_t>(stream));
  return logits;
}

}  // namespace
}  // namespace pathnet

STABLE_TORCH_LIBRARY_IMPL(pathnet, CUDA, m) {
  m.impl("net_eval", TORCH_BOX(&pathnet::net_eval_cuda));
}
