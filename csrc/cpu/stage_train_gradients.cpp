#include "stage_train_gradients.h"

#include "stage_train_batch.h"

namespace pathnet::train {
namespace {

Tensor to_tensor(const std::vector<double>& values, const Tensor& like) {
  Tensor result = torch::stable::empty_like(like);
  for (size_t c = 0; c < values.size(); ++c)
    data(result)[c * result.stride(0)] = static_cast<float>(values[c]);
  return result;
}

}  // namespace

Gradients::Gradients(const std::vector<bool>& needs, const Plan& plan)
    : needs_(needs), convs_(plan.convs()) {
  const size_t wanted = kFirst + convs_ + 2 * plan.norms();
  check(needs.size() == wanted, "stage_train_bwd: needs must hold ", wanted,
        " values for these blocks, got ", needs.size(), '.');
  of_.resize(wanted);
}

void Gradients::set_norm(const Block& block, int64_t i, const NormBackward& from) {
  const int64_t at = norm(block, i);
  if (needs_[at]) of_[at] = to_tensor(from.weight, block.norms[i].weight);
  if (needs_[at + 1]) of_[at + 1] = to_tensor(from.bias, block.norms[i].bias);
}

std::vector<Tensor> Gradients::list() {
  std::vector<Tensor> result;
  for (size_t i = 0; i < needs_.size(); ++i) {
    if (!needs_[i]) continue;
    check(of_[i].has_value(), "stage_train_bwd: needs[", i,
          "] is True, but the gates of these blocks give no such gradient.");
    result.push_back(*of_[i]);
  }
  return result;
}

}  // namespace pathnet::train
