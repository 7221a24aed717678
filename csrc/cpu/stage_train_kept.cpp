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
  if (post && !plan.blocks[0].trained()) visit(kept.alive, words(plan.blocks[0].out()));
  for (int64_t b = 0; b < plan.branches(); ++b) {
    const Block& block = plan.branch(b);
    if (keeps_x(plan, b)) visit(kept.blocks[b].x, values(block.in()));
    if (!block.trained()) continue;
    for (int64_t i = 0; i < kept_outputs(block); ++i)
      visit(kept.blocks[b].u[i], values(block.convs[i].out));
    if (post && b < plan.size()) visit(kept.blocks[b].alive, words(block.out()));
  }
}

// Norms of the trained ones among the first `branches` branches.
int64_t trained_norms(const Plan& plan, int64_t branches) {
  int64_t norms = 0;
  for (int64_t b = 0; b < branches; ++b)
    if (plan.branch(b).trained()) norms += plan.branch(b).norms.size();
  return norms;
}

std::vector<KeptBlock> empty_blocks(const Plan& plan) {
  std::vector<KeptBlock> blocks(plan.branches());
  for (size_t b = 0; b < blocks.size(); ++b) blocks[b].u.resize(kept_outputs(plan.branch(b)));
  return blocks;
}

}  // namespace

bool keeps_x(const Plan& plan, int64_t b) {
  if (b == plan.size()) return false;
  const Block& block = plan.blocks[b];
  const bool projected = b == 0 && plan.projection && plan.projection->has_weight_gradients();
  return projected || block.has_weight_gradients() || (block.preact && block.trained());
}
int64_t kept_outputs(const Block& block) { return block.size() - (block.preact ? 1 : 0); }

NormState norm_state(const Plan& plan, const Kept& kept, int64_t b, int64_t norm) {
  const Block& block = plan.branch(b);
  const int64_t padded = round_up(block.norms[norm].channels(), kBlock);
  const int64_t floats = NormState::kRows * widest(plan);
  const int64_t passing = b < plan.size() ? norm : kept.passing.size(0) - 1;
  if (!block.trained()) return {data(kept.passing) + passing * floats, padded};
  return {data(kept.norms) + (trained_norms(plan, b) + norm) * floats, padded};
}

std::vector<Tensor> to_list(const Plan& plan, const Kept& kept) {
  std::vector<Tensor> saved{kept.norms};
  for_each(plan, kept, [&](const Batch& slot, int64_t) { saved.push_back(*slot); });
  return saved;
}

Kept new_kept(const Plan& plan) {
  const auto states = [&](int64_t norms) {
    return allocate({norms, NormState::kRows, widest(plan)}, std::string(plan.op) + ": statistics");
  };
  int64_t most = 0;  // norms of a block
  for (const Block& block : plan.blocks) most = std::max(most, block.size());
  return {states(trained_norms(plan, plan.branches())), states(most + 1), nullptr,
          empty_blocks(plan)};
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
  const int64_t count = trained_norms(plan, plan.branches());
  const Tensor norms = next(count * NormState::kRows * widest(plan));
  Kept kept{norms, norms, nullptr, empty_blocks(plan)};
  for_each(plan, kept,
           [&](Batch& slot, int64_t floats) { slot = std::make_shared<Tensor>(next(floats)); });
  check(at == saved.size(), name, " has ", saved.size(),
        " tensors, more than the forward of these blocks gave.");
  return kept;
}

}  // namespace pathnet::train
