#pragma once
// stage_train: what a run of gated blocks keeps, and how the gradient is masked between them. The
// same rules as in kernels/stage_train_plan.py and kernels/stage_train_preact_fwd.py, which explain
// them.
#include <vector>

namespace pathnet::train {

enum Form { kBasic, kPreact };  // as pathnet/ops/stage_train_forms.py numbers them
enum Gate { kOff, kFull, kForward, kFrozen, kResidual };  // pathnet/gates.py
enum class Masked { kNot, kByValues, kByBits };
enum class Written { kNot, kNew, kJoined };

using Gates = std::vector<int>;

inline bool has_gradient(int gate) { return gate != kForward; }

inline bool keeps_input(const Gates& gates, int block) {
  return block > 0 && (gates[block] == kFull || gates[block] == kResidual);
}

inline Masked mask_at(const Gates& gates, int block) {
  if (block == 0) return Masked::kNot;
  const bool alone = has_gradient(gates[block - 1]) && block < static_cast<int>(gates.size()) &&
                     keeps_input(gates, block);
  return alone ? Masked::kByValues : Masked::kByBits;
}

inline int owner(const Gates& gates, int position) {
  const int end = static_cast<int>(gates.size());
  while (position < end && !has_gradient(gates[position])) ++position;
  return position;
}

inline Written bits_at(const Gates& gates, int position) {
  if (mask_at(gates, owner(gates, position)) != Masked::kByBits) return Written::kNot;
  return position == 1 || has_gradient(gates[position - 1]) ? Written::kNew : Written::kJoined;
}

// The block with a gradient before `block`; -1 if there is none.
inline int before(const Gates& gates, int block) {
  do --block;
  while (block >= 0 && !has_gradient(gates[block]));
  return block;
}

// What the backward reads of a block.
struct Kept {
  bool x, u1, u2, states, bits;
};

inline Kept kept_of(Form form, const Gates& gates, int block) {
  const bool gradient = has_gradient(gates[block]);
  if (form == kPreact) return {gradient && block > 0, gradient, false, gradient, false};
  return {keeps_input(gates, block), gradient, gradient, gradient,
          gradient && mask_at(gates, block) == Masked::kByBits};
}

// Whether it reads the mask of the ReLUs behind the run.
inline bool keeps_last_bits(Form form) { return form == kBasic; }

}  // namespace pathnet::train
