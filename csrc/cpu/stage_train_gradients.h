#pragma once
// The gradients that a caller of stage_train_bwd asks for, and gets: one tensor for each True of
// `needs`, in the order x, skip, weights, norms (weight and bias of each).
#include <optional>

#include "stage_train_norm.h"

namespace pathnet::train {

class Gradients {
 public:
  // `needs` must outlive this.
  Gradients(const std::vector<bool>& needs, const Plan& plan);
  bool needs_x() const { return needs_[kX]; }
  bool needs_skip() const { return needs_[kSkip]; }
  // Under a gate that gives none `list` refuses the call.
  bool needs_weight(const Block& block, int64_t conv) const {
    return needs_[weight(block, conv)] && block.has_weight_gradients();
  }
  bool needs_norm(const Block& block, int64_t i) const {
    return needs_[norm(block, i)] || needs_[norm(block, i) + 1];
  }

  void set_x(Tensor gradient) { of_[kX] = std::move(gradient); }
  void set_skip(Tensor gradient) { of_[kSkip] = std::move(gradient); }
  void set_weight(const Block& block, int64_t conv, Tensor gradient) {
    of_[weight(block, conv)] = std::move(gradient);
  }
  void set_norm(const Block& block, int64_t i, const NormBackward& from);

  std::vector<Tensor> list();

 private:
  static constexpr int64_t kX = 0, kSkip = 1, kFirst = 2;
  int64_t weight(const Block& block, int64_t conv) const { return kFirst + block.first + conv; }
  int64_t norm(const Block& block, int64_t i) const {
    return kFirst + convs_ + 2 * (block.first + i);
  }

  const std::vector<bool>& needs_;
  int64_t convs_;
  std::vector<std::optional<Tensor>> of_;
};

}  // namespace pathnet::train
