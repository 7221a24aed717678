// stem_train_fwd and stem_train_bwd: batch norm, ReLU and, in an ImageNet net, 3x3 max pooling of
// stride 2 in training.
//
// Forward, u is read once for its statistics and once to be activated or pooled; the values before
// pooling are never written. Backward, it is read once for the sums of the batch norm and once for
// its own gradient. A row of pixels is what a thread takes, and what a partial sum is over.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "recycled.h"
#include "stage_train_batch.h"
#include "stage_train_norm.h"
#include "stem_kernels.h"

namespace pathnet::train {
namespace {

constexpr auto kChannelsLast = torch::headeronly::MemoryFormat::ChannelsLast;

bool is_channels_last(const Tensor& x) {
  int64_t expected = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

void check_batch(const Tensor& x, std::initializer_list<int64_t> shape, const std::string& name) {
  check_cpu(x, ScalarType::Float, name);
  check_shape(x, shape, name);
  check(is_channels_last(x), name, " must be dense in channels_last, but its strides are ",
        to_string(x.strides()), '.');
}

Stem read_stem(const Tensor& u, const std::string& name) {
  check(u.dim() == 4 && u.numel() > 0 && u.size(1) % kBlock == 0, name,
        " must have shape [N, C, H, W] with at least one image and a multiple of ", kBlock,
        " channels, but it has ", to_string(u.sizes()), '.');
  check_batch(u, {u.size(0), u.size(1), u.size(2), u.size(3)}, name);
  Stem stem;
  stem.images = u.size(0), stem.channels = u.size(1);
  stem.height = u.size(2), stem.width = u.size(3);
  stem.u = data(u);
  return stem;
}

Norm read_norm(const std::vector<Tensor>& norm, const std::vector<Tensor>& running,
               int64_t channels) {
  check(norm.size() == 2 && running.size() == 2,
        "stem_train_fwd: norm and running must hold two tensors each, got ", norm.size(), " and ",
        running.size(), '.');
  for (const auto* list : {&norm, &running})
    for (const Tensor& tensor : *list) {
      check_cpu(tensor, ScalarType::Float, "stem_train_fwd: a tensor of the batch norm");
      check_shape(tensor, {channels}, "stem_train_fwd: a tensor of the batch norm");
    }
  Norm result;
  result.weight = norm[0], result.bias = norm[1], result.mean = running[0], result.var = running[1];
  return result;
}

// Calls pass(stem, row) for all rows, in parallel.
void for_rows(const Stem& stem, int64_t rows, void (*pass)(const Stem&, int64_t)) {
  constexpr int64_t kFewest = 1 << 15;  // floats that are worth a thread
  const int64_t grain = divide_up(kFewest, stem.width * stem.channels);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) pass(stem, row);
  });
}

Tensor new_sums(const Stem& stem, const char* op) {
  return allocate_recycled({stem.rows(), kSums, stem.channels}, std::string(op) + ": sums");
}

std::tuple<Tensor, Tensor, Tensor> stem_train_fwd_cpu(const Tensor& u, std::vector<Tensor> norm,
                                                      std::vector<Tensor> running, bool batch_stats,
                                                      bool update, double eps, double momentum,
                                                      bool pool) {
  constexpr const char* kOp = "stem_train_fwd";
  Stem stem = read_stem(u, "stem_train_fwd: u");
  Norm bn = read_norm(norm, running, stem.channels);
  bn.batch_stats = batch_stats, bn.update = update, bn.eps = eps, bn.momentum = momentum;
  const int64_t h = pool ? pooled(stem.height) : stem.height;
  const int64_t w = pool ? pooled(stem.width) : stem.width;
  const Tensor sums = new_sums(stem, kOp);
  const Tensor state = allocate({NormState::kRows, stem.channels}, std::string(kOp) + ": state");
  const Tensor y = allocate_recycled({stem.images, stem.channels, h, w},
                                     std::string(kOp) + ": the output", kChannelsLast);
  // four bytes in each float
  const Tensor winners = pool ? allocate_recycled({stem.images, h, w, stem.channels / 4},
                                                  std::string(kOp) + ": the winners")
                              : allocate({0}, std::string(kOp) + ": no winners");
  stem.sums = data(sums);
  if (batch_stats) for_rows(stem, stem.rows(), stem_kernels().sum_up);
  const NormState values(data(state), stem.channels);
  finish_norm(bn, stem.sums, stem.rows(), stem.width, values);
  stem.norm = values.activation();
  stem.y = data(y);
  stem.winners = static_cast<uint8_t*>(winners.data_ptr());
  if (pool)
    for_rows(stem, stem.pooled_rows(), stem_kernels().pool);
  else
    for_rows(stem, stem.rows(), stem_kernels().activate);
  return {y, winners, state};
}

Tensor to_tensor(const std::vector<double>& values) {
  Tensor tensor = allocate({static_cast<int64_t>(values.size())}, "stem_train_bwd: a gradient");
  std::transform(values.begin(), values.end(), data(tensor),
                 [](double value) { return static_cast<float>(value); });
  return tensor;
}

std::vector<Tensor> stem_train_bwd_cpu(const Tensor& grad_y, const Tensor& u, const Tensor& winners,
                                       const Tensor& state, const Tensor& weight, bool batch_stats,
                                       bool needs_u) {
  constexpr const char* kOp = "stem_train_bwd";
  Stem stem = read_stem(u, "stem_train_bwd: u");
  const bool pool = winners.numel() != 0;
  const int64_t h = pool ? pooled(stem.height) : stem.height;
  const int64_t w = pool ? pooled(stem.width) : stem.width;
  const Tensor g = torch::stable::contiguous(grad_y, kChannelsLast);
  check_batch(g, {stem.images, stem.channels, h, w}, "stem_train_bwd: grad_y");
  if (pool) check_shape(winners, {stem.images, h, w, stem.channels / 4}, "stem_train_bwd: winners");
  check_shape(state, {NormState::kRows, stem.channels}, "stem_train_bwd: state");
  check_shape(weight, {stem.channels}, "stem_train_bwd: weight");
  Norm norm;
  norm.weight = weight, norm.batch_stats = batch_stats;
  const NormState values(data(state), stem.channels);
  const Tensor sums = new_sums(stem, kOp);
  stem.sums = data(sums);
  stem.winners = pool ? static_cast<uint8_t*>(winners.data_ptr()) : nullptr;
  stem.norm = values.activation();
  stem.mean = values.mean;
  stem.gradient.g = data(g);
  for_rows(stem, stem.rows(), stem_kernels().sum_up_gradient);
  const NormBackward backward =
      norm_backward(norm, values, stem.sums, stem.rows(), stem.width, nullptr);
  std::vector<Tensor> gradients{to_tensor(backward.weight), to_tensor(backward.bias)};
  if (!needs_u) return gradients;
  gradients.push_back(
      allocate_recycled(u.sizes(), std::string(kOp) + ": the gradient of u", kChannelsLast));
  stem.gradient = backward.gradient(stem.gradient.g, stem.u);
  stem.du = data(gradients.back());
  for_rows(stem, stem.rows(), stem_kernels().pass_back);
  return gradients;
}

}  // namespace
}  // namespace pathnet::train

STABLE_TORCH_LIBRARY_IMPL(pathnet, CPU, m) {
  m.impl("stem_train_fwd", TORCH_BOX(&pathnet::train::stem_train_fwd_cpu));
  m.impl("stem_train_bwd", TORCH_BOX(&pathnet::train::stem_train_bwd_cpu));
}
