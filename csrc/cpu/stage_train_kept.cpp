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

int64_t trained_blocks(const Plan& plan) {
  return std::count_if(plan.blocks.begin(), plan.blocks.end(),
                       [](const Block& block) { return block.trained(); });
}

}  // namespace

bool keeps_x(const Block& block) { return block.has_weight_gradients() || block.preact; }

NormState norm_state(const Plan& plan, const Kept& kept, int64_t block, int norm) {
  const auto begin = plan.blocks.begin(), own = begin + block;
  const int64_t rank = std::count_if(begin, own, [](const Block& b) { return b.trained(); });
  const int64_t padded = round_up(own->norms[norm].channels(), kBlock);
  const int64_t floats = NormState::kRows * widest(plan);
  if (!own->trained()) return {data(kept.passing) + norm * floats, padded};
  return {data(kept.norms) + (2 * rank + norm) * floats, padded};
}

std::vector<Tensor> to_list(const Plan& plan, const Kept& kept) {
  std::vector<Tensor> saved{kept.norms};
  for_each(plan, kept, [&](const Batch& slot, int64_t) { saved.push_back(*slot); });
  return saved;
}

Kept new_kept(const Plan& plan) {
  const auto states = [&](int64_t blocks) {
    return allocate({2 * blocks, NormState::kRows, widest(plan)},
                    std::string(plan.op) + ": statistics");
  };
  return {states(trained_blocks(plan)), states(1), nullptr,
          std::vector<KeptBlock>(plan.blocks.size())};
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
  const Tensor norms = next(2 * trained_blocks(plan) * NormState::kRows * widest(plan));
  Kept kept{norms, norms, nullptr, std::vector<KeptBlock>(plan.blocks.size())};
  for_each(plan, kept,
           [&](Batch& slot, int64_t floats) { slot = std::make_shared<Tensor>(next(floats)); });
  check(at == saved.size(), name, " has ", saved.size(),
        " tensors, more than the forward of these blocks gave.");
  return kept;
}

}  // namespace pathnet::train
