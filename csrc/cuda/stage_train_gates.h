#pragma once
// stage_train: what a run of gated blocks keeps, and how the gradient is masked between them. The
// same rules as in kernels/stage_train_plan.py, which explains them.
#include <vector>

namespace pathnet::train {

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

}  // namespace pathnet::train
