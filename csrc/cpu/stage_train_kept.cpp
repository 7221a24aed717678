#include "stage_train_kept.h"

#include <algorithm>

namespace pathnet::train {
namespace {

// Calls visit(slot, floats) for each tensor that the list has, in its order.
template <typename AnyKept, typename Visit>
void for_each(const Plan& plan, AnyKept& kept, const Visit& visit) {
  const auto values = [&](const Extent& extent) { return plan.images * extent.floats(); };
  const auto words = [&](const Extent& extent) {
    return divide_up(plan.images * extent.blocks * extent.pixels(), 2);
  };
  const bool post = !plan.preact();
  if (post && !plan.blocks[0].trained()) visit(kept.alive, words(plan.blocks[0].out));
  for (size_t b = 0; b < plan.blocks.size(); ++b) {
    const Block& block = plan.blocks[b];
    if (!block.trained()) continue;
    if (keeps_x(block)) visit(kept.blocks[b].x, values(block.in));
    visit(kept.blocks[b].u[0], values(block.out));
    if (post) visit(kept.blocks[b].u[1], values(block.out));
    if (post) visit(kept.blocks[b].alive, words(block.out));
  }
}

}  // namespace

bool keeps_x(const Block& block) { return block.has_weight_gradients() || block.preact; }

NormState norm_state(const Plan& plan, const Kept& kept, int64_t block, int norm) {
  const int64_t row = widest(plan);
  const int64_t padded = round_up(plan.blocks[block].norms[norm].channels(), kBlock);
  return {data(kept.norms) + (2 * block + norm) * NormState::kRows * row, padded};
}

std::vector<Tensor> to_list(const Plan& plan, const Kept& kept) {
  std::vector<Tensor> saved{kept.norms};
  for_each(plan, kept, [&](const Batch& slot, int64_t) { saved.push_back(*slot); });
  return saved;
}

Kept new_kept(const Plan& plan) {
  const int64_t count = plan.blocks.size();
  return {
      allocate({2 * count, NormState::kRows, widest(plan)}, std::string(plan.op) + ": statistics"),
      nullptr, std::vector<KeptBlock>(count)};
}

Kept from_list(const Plan& plan, const std::vector<Tensor>& saved) {
  const std::string name = std::string(plan.op) + ": saved";
  size_t at = 0;
  const auto next = [&](int64_t floats) {
    check(at < saved.size(), name, " has only ", saved.size(),
          " tensors, fewer than the forward of these blocks gave.");
    const Tensor& tensor = saved[at++];
    check_cpu(tensor, ScalarType::Float, name);
    check(tensor.numel() == floats && tensor.is_contiguous() &&
              reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 64 == 0,
          name, '[', at - 1, "] must be as the forward gave it: ", floats,
          " floats in a row, on a cache line.");
    return tensor;
  };
  Kept kept{next(2 * plan.blocks.size() * NormState::kRows * widest(plan)), nullptr,
            std::vector<KeptBlock>(plan.blocks.size())};
  for_each(plan, kept,
           [&](Batch& slot, int64_t floats) { slot = std::make_shared<Tensor>(next(floats)); });
  check(at == saved.size(), name, " has ", saved.size(),
        " tensors, more than the forward of these blocks gave.");
  return kept;
}

}  // namespace pathnet::train
