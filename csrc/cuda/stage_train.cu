// stage_train on CUDA: a run of gated blocks in training. This file checks the arguments and
// allocates; stage_train_basic.cuh and stage_train_preact.cuh say which kernels are launched
// (docs/stage-train-cuda.md).
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <map>
#include <mutex>
#include <optional>
#include <tuple>

#include "stage_train_launch.h"
#include "stage_train_table.h"

namespace pathnet::train {

PATHNET_STAGE_TRAIN(extern, Bf16)
PATHNET_STAGE_TRAIN(extern, Fp16)
PATHNET_STAGE_TRAIN(extern, Tf32)

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// ---- checks -------------------------------------------------------------------------------------

void check_on(const Tensor& t, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == x.get_device_index(),
                  "stage_train: ", name, " must be on x's device. Move it there.");
}

void check_activation(const Tensor& t, const Tensor& x, const char* name) {
  check_on(t, x, name);
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type() && t.dim() == 4, "stage_train: ", name,
                  " must have four dimensions and x's type.");
  const int64_t c = t.size(1), w = t.size(3), h = t.size(2);
  const int64_t dense[] = {h * w * c, 1, w * c, c};
  for (int d = 0; d < 4; ++d) {
    STD_TORCH_CHECK(t.size(d) == x.size(d) && (t.size(d) < 2 || t.stride(d) == dense[d]),
                    "stage_train: ", name, " must have x's shape, dense in channels_last memory.");
  }
}

void check_vectors(const Tensors& tensors, const Tensor& x, ScalarType type, const char* name) {
  for (const Tensor& t : tensors) {
    check_on(t, x, name);
    STD_TORCH_CHECK(t.is_contiguous() && (t.scalar_type() == type || t.dim() == 0),
                    "stage_train: ", name,
                    " must be dense and in float32. Call it through pathnet.ops.");
  }
}

void check_run(const Tensor& x, const Tensors& weights, const std::vector<int64_t>& blocks) {
  STD_TORCH_CHECK(x.is_cuda() && x.dim() == 4 && x.numel() > 0,
                  "stage_train: x must have the shape "
                  "[N, C, H, W], hold an image and be on a GPU.");
  check_activation(x, x, "x");
  const int64_t c = x.size(1);
  STD_TORCH_CHECK(c == 16 || c == 32 || c == 64,
                  "stage_train: x must have 16, 32 or 64 channels, got ", c, ".");
  STD_TORCH_CHECK(x.size(0) * x.size(2) <= INT32_MAX && x.size(3) <= INT32_MAX,
                  "stage_train: x must have fewer rows. Pass fewer images at a time.");
  STD_TORCH_CHECK(
      !blocks.empty() && blocks.size() % 3 == 0 && weights.size() == blocks.size() / 3 * 2,
      "stage_train: a block must have a form, a stride, a gate and two weights.");
  for (size_t i = 0; i < blocks.size(); i += 3) {
    STD_TORCH_CHECK(blocks[i] == blocks[0] && (blocks[i] == kBasic || blocks[i] == kPreact),
                    "stage_train: blocks must all be basic or all pre-activation blocks.");
  }
  for (const Tensor& w : weights) {
    check_on(w, x, "weights");
    STD_TORCH_CHECK(w.dim() == 4 && w.size(0) == c && w.size(1) == c && w.size(2) == 3 &&
                        w.size(3) == 3 && w.stride(2) == 3 * w.stride(3),
                    "stage_train: weights must have the shape [C, C, 3, 3] and evenly lying taps.");
    STD_TORCH_CHECK(w.scalar_type() == x.scalar_type() || w.scalar_type() == ScalarType::Float,
                    "stage_train: weights must be in x's type or in float32.");
  }
}

// ---- flat lists ---------------------------------------------------------------------------------

std::vector<void*> pointers(const Tensors& tensors) {
  std::vector<void*> list;
  for (const Tensor& t : tensors) list.push_back(t.data_ptr());
  return list;
}

std::vector<int64_t> numbers(const Tensor& x, const Tensors& weights,
                             const std::vector<int64_t>& blocks, const std::vector<bool>& flags,
                             const std::vector<int64_t>& columns) {
  std::vector<int64_t> list{
      x.size(0), x.size(2), x.size(3), x.size(1), static_cast<int64_t>(blocks.size() / 3),
      blocks[0]};
  for (size_t i = 2; i < blocks.size(); i += 3) list.push_back(blocks[i]);
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& w = weights[i];
    list.insert(list.end(), {w.scalar_type() == ScalarType::Float, w.stride(0), w.stride(1),
                             w.stride(3), columns[i]});
  }
  list.insert(list.end(), flags.begin(), flags.end());
  return list;
}

std::vector<double> reals(const std::vector<double>& scales, const std::vector<double>& constants) {
  std::vector<double> list;
  for (size_t b = 0; b < scales.size(); ++b) {
    list.push_back(scales[b]);
    list.insert(list.end(), constants.begin() + 4 * b, constants.begin() + 4 * (b + 1));
  }
  return list;
}

RunPlan run_of(const Tensor& x, const Tensors& weights, const std::vector<int64_t>& blocks,
               const std::vector<double>& scales, const std::vector<bool>& flags,
               const std::vector<double>& constants, const std::vector<int64_t>& columns) {
  check_run(x, weights, blocks);
  STD_TORCH_CHECK(scales.size() == blocks.size() / 3 && flags.size() == 4 * scales.size() &&
                      constants.size() == 4 * scales.size(),
                  "stage_train: a block must have one multiplier and two batch norms.");
  const std::vector<void*> list = pointers(weights);
  const std::vector<int64_t> integers = numbers(x, weights, blocks, flags, columns);
  Pointers next_weight(list.data());
  Numbers next_number(integers.data());
  RunPlan run = read_run(next_weight, next_number, reals(scales, constants).data());
  run.x = x.data_ptr();
  return run;
}

// ---- memory -------------------------------------------------------------------------------------

cudaStream_t stream_of(const Tensor& x) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// A zero that the kernels leave as a zero: one for each stream, whose launches follow one another.
// A CUDA graph that is captured gets its own, since it may be replayed on any stream.
Tensor counter_of(const Tensor& x, cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  STD_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  const auto zero = [&] {
    Tensor t = torch::stable::new_empty(x, {1}, ScalarType::Int);
    return torch::stable::zero_(t);
  };
  if (status != cudaStreamCaptureStatusNone) return zero();
  static std::mutex mutex;
  static auto& counters = *new std::map<std::pair<int, cudaStream_t>, Tensor>;  // never freed
  const std::lock_guard lock(mutex);
  const auto key = std::make_pair(static_cast<int>(x.get_device_index()), stream);
  const auto found = counters.find(key);
  return found != counters.end() ? found->second : counters.emplace(key, zero()).first->second;
}

Tensor floats(const Tensor& x, std::vector<int64_t> shape) {
  return torch::stable::new_empty(x, shape, ScalarType::Float);
}

// What the backward reads, as kept_tensors in pathnet/ops/stage_train_cuda_rules.py lists it.
std::vector<std::optional<Tensor>> new_kept(const Tensor& x, const RunPlan& run) {
  const int64_t c = x.size(1);
  const auto bits = [&] {
    return torch::stable::new_empty(x, {x.numel() / c, c / 8}, ScalarType::Byte);
  };
  std::vector<std::optional<Tensor>> kept;
  for (int b = 0; b < static_cast<int>(run.blocks.size()); ++b) {
    const Kept is_kept = kept_of(run.form, run.gates, b);
    kept.resize(kept.size() + 5);
    std::optional<Tensor>* own = &kept[5 * b];
    if (is_kept.x) own[0] = torch::stable::empty_like(x);
    if (is_kept.u1) own[1] = torch::stable::empty_like(x);
    if (is_kept.u2) own[2] = torch::stable::empty_like(x);
    if (is_kept.states) own[3] = floats(x, {2, 4, c});
    if (is_kept.bits) own[4] = bits();
  }
  kept.emplace_back();
  if (keeps_last_bits(run.form)) kept.back() = bits();
  return kept;
}

std::vector<void*> pointers(const std::vector<std::optional<Tensor>>& tensors) {
  std::vector<void*> list;
  for (const auto& t : tensors) list.push_back(t.has_value() ? t->data_ptr() : nullptr);
  return list;
}

void use_workspace(RunPlan& run, const Tensor& slots, const Tensor& counter) {
  run.slots = static_cast<float*>(slots.data_ptr());
  run.counter = static_cast<int*>(counter.data_ptr());
}

// ---- forward ------------------------------------------------------------------------------------

void forward(const Tensor& x, const RunPlan& run, void* y, cudaStream_t stream) {
  const int channels = static_cast<int>(x.size(1));
  if (x.scalar_type() == ScalarType::BFloat16)
    return launch_forward<Bf16>(run, channels, y, stream);
  if (x.scalar_type() == ScalarType::Half) return launch_forward<Fp16>(run, channels, y, stream);
  launch_forward<Tf32>(run, channels, y, stream);
}

std::tuple<Tensor, Tensors> stage_train_cuda_fwd(const Tensor& x, std::optional<Tensor> skip,
                                                 Tensors weights, Tensors norms, Tensors running,
                                                 std::vector<int64_t> blocks,
                                                 std::vector<double> scales,
                                                 std::vector<bool> flags,
                                                 std::vector<double> constants, std::string) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const std::vector<int64_t> columns(weights.size(), -1);
  RunPlan run = run_of(x, weights, blocks, scales, flags, constants, columns);
  STD_TORCH_CHECK(norms.size() == 2 * weights.size() && running.size() == 3 * weights.size(),
                  "stage_train: a batch norm must have weight, bias, mean, variance and counter.");
  check_vectors(norms, x, ScalarType::Float, "norms");
  check_vectors(running, x, ScalarType::Float, "running");
  if (skip.has_value()) check_activation(*skip, x, "skip"), run.skip = skip->data_ptr();
  const auto kept = new_kept(x, run);
  const std::vector<void*> of_norms = pointers(norms), of_running = pointers(running);
  const std::vector<void*> of_kept = pointers(kept);
  Pointers next_norm(of_norms.data()), next_running(of_running.data()), next_kept(of_kept.data());
  read_norms(run, next_norm), read_running(run, next_running), read_kept(run, next_kept);

  const cudaStream_t stream = stream_of(x);
  const Tensor slots = floats(x, {kMostBlocks, x.size(1), Moments::kFloats});
  const Tensor counter = counter_of(x, stream), states = floats(x, {2, 4, x.size(1)});
  use_workspace(run, slots, counter);
  Tensors scratch;  // of FORWARD blocks
  const auto fresh = [&] { return scratch.emplace_back(torch::stable::empty_like(x)).data_ptr(); };
  void *u1 = fresh(), *x1 = fresh(), *x2 = fresh(), *u2 = run.form == kBasic ? fresh() : nullptr;
  use_scratch(run, {u1, u2, {x1, x2}, static_cast<float*>(states.data_ptr())});
  Tensor y = torch::stable::empty_like(x);
  forward(x, run, y.data_ptr(), stream);
  Tensors saved;
  for (const auto& t : kept)
    if (t.has_value()) saved.push_back(*t);
  return {y, saved};
}

// ---- backward -----------------------------------------------------------------------------------

// The first column of each weight's gradient in a slot, -1 where none is asked for; and their sum.
std::pair<std::vector<int64_t>, int64_t> columns_of(const Tensors& weights,
                                                    const std::vector<bool>& needs) {
  std::vector<int64_t> columns(weights.size(), -1);
  int64_t size = 0;
  for (size_t i = 0; i < weights.size(); ++i)
    if (needs[2 + i]) columns[i] = size, size += weights[i].numel();
  return {columns, size};
}

void backward(const Tensor& x, const RunPlan& run, const BackwardRun& outside, cudaStream_t stream,
              int& of_x, int& of_skip) {
  const int channels = static_cast<int>(x.size(1));
  if (x.scalar_type() == ScalarType::BFloat16)
    return launch_backward<Bf16>(run, channels, outside, stream, of_x, of_skip);
  if (x.scalar_type() == ScalarType::Half)
    return launch_backward<Fp16>(run, channels, outside, stream, of_x, of_skip);
  launch_backward<Tf32>(run, channels, outside, stream, of_x, of_skip);
}

void read_saved(RunPlan& run, const Tensors& saved) {
  std::vector<void*> list;
  size_t at = 0;
  const auto add = [&](bool is_kept) {
    STD_TORCH_CHECK(!is_kept || at < saved.size(),
                    "stage_train: saved must be what the forward gave.");
    list.push_back(is_kept ? saved[at++].data_ptr() : nullptr);
  };
  for (int b = 0; b < static_cast<int>(run.gates.size()); ++b) {
    const Kept kept = kept_of(run.form, run.gates, b);
    for (const bool is_kept : {kept.x, kept.u1, kept.u2, kept.states, kept.bits}) add(is_kept);
  }
  add(keeps_last_bits(run.form));
  Pointers next(list.data());
  read_kept(run, next);
}

Tensors stage_train_cuda_bwd(const Tensor& grad, const Tensor& x, Tensors saved, Tensors weights,
                             Tensors norms, std::vector<int64_t> blocks, std::vector<double> scales,
                             std::vector<bool> flags, std::vector<double> constants, std::string,
                             bool has_skip, std::vector<bool> needs) {
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const Tensor grad_y =
      torch::stable::contiguous(grad, torch::headeronly::MemoryFormat::ChannelsLast);
  check_activation(grad_y, grad_y, "grad_y");
  STD_TORCH_CHECK(needs.size() == 2 + weights.size() + norms.size(),
                  "stage_train: needs must hold a flag for x, skip, each weight and each norm.");
  const auto [columns, size] = columns_of(weights, needs);
  RunPlan run = run_of(grad_y, weights, blocks, scales, flags, constants, columns);
  run.x = x.data_ptr();  // of the shape of grad_y; read only where block 0 trains its weights
  read_saved(run, saved);

  const int64_t c = grad_y.size(1), count = 2 * static_cast<int64_t>(run.blocks.size());
  const cudaStream_t stream = stream_of(grad_y);
  const Tensor sums = floats(grad_y, {kMostBlocks, c, GradientSums::kFloats});
  const Tensor counter = counter_of(grad_y, stream), slopes = floats(grad_y, {count, 2, c});
  use_workspace(run, sums, counter);
  const Tensor gradients = floats(grad_y, {count, 2, c});
  Tensors buffers, given;
  BackwardRun out{};
  out.grad_y = grad_y.data_ptr(), out.slopes = static_cast<float*>(slopes.data_ptr());
  out.gradients = static_cast<float*>(gradients.data_ptr());
  for (int i = 0; i < buffers_of(run.form); ++i) {
    buffers.push_back(torch::stable::empty_like(grad_y));
    out.buffers[i] = buffers.back().data_ptr();
  }
  std::optional<Tensor> partial, total;
  if (size > 0) {
    const int bytes = grad_y.scalar_type() == ScalarType::Float ? 4 : 2;
    const int slots = slots_of(run.batch, static_cast<int>(c), bytes);
    STD_TORCH_CHECK(slots > 0,
                    "stage_train: the partial sums of weights would take more than half "
                    "of an activation. Train a larger batch, or on another backend.");
    partial = floats(grad_y, {slots, size});
    total = torch::stable::new_empty(weights[0], {size});
    out.partial = static_cast<float*>(partial->data_ptr()), out.total = total->data_ptr();
    out.slot_size = size, out.total_is_float = weights[0].scalar_type() == ScalarType::Float;
  }
  out.has_skip = has_skip, out.needs_input = needs[0] || needs[1];
  int of_x = -1, of_skip = -1;
  backward(grad_y, run, out, stream, of_x, of_skip);
  if (needs[0]) given.push_back(buffers.at(of_x));
  if (needs[1]) given.push_back(buffers.at(of_skip));
  if (total.has_value()) given.push_back(*total);
  given.push_back(gradients);
  return given;
}

// ---- counts -------------------------------------------------------------------------------------

// Five numbers for each launch of a run, as pathnet/ops/stage_train_cuda_count.py reads them.
std::vector<int64_t> stage_train_cuda_count(std::vector<int64_t> numbers, int64_t element_bytes,
                                            bool backward) {
  STD_TORCH_CHECK(numbers.size() > kBlocksPlace && numbers[kBlocksPlace] > 0,
                  "stage_train: numbers must describe a run. Call it through pathnet.profile.");
  const int channels = static_cast<int>(numbers[kChannelsPlace]);
  return element_bytes == 4 ? count_launches<Tf32>(channels, numbers.data(), backward)
                            : count_launches<Fp16>(channels, numbers.data(), backward);
}

}  // namespace
}  // namespace pathnet::train

STABLE_TORCH_LIBRARY_IMPL(pathnet, CUDA, m) {
  m.impl("stage_train_cuda_fwd", TORCH_BOX(&pathnet::train::stage_train_cuda_fwd));
  m.impl("stage_train_cuda_bwd", TORCH_BOX(&pathnet::train::stage_train_cuda_bwd));
}

STABLE_TORCH_LIBRARY_IMPL(pathnet, CompositeExplicitAutograd, m) {
  m.impl("stage_train_cuda_count", TORCH_BOX(&pathnet::train::stage_train_cuda_count));
}
