#pragma once
#include <functional>
#include <vector>

#include "eval_group.h"
#include "eval_shares.h"

namespace pathnet {

// Groups for all sections, each of which gathers more of the smaller images before it takes them
// further: whatever their size, they fill the cache, and the many weights behind are read less
// often.
class Cascade {
 public:
  // Reads image n of the batch.
  using Load = std::function<void(int64_t n, const Image& to)>;

  static int64_t floats(const Plan& plan, const Shares& shares);

  Cascade(const Plan& plan, const Switches& switches, const Shares& shares, float* memory,
          const Load& load);

  // As the leader of `crew`. There are as many images at most as go through the last section
  // together; the first of them is image `first` of the batch.
  void run(int64_t first, int64_t images, Crew& crew) {
    run(groups_.size() - 1, first, images, crew);
  }
  const Image& output(int64_t i) const { return groups_.back().output(i); }
  // Of the thread, for the work of other crews.
  float* scratch() const { return scratch_; }

 private:
  void run(size_t section, int64_t first, int64_t images, Crew& crew);

  const Load& load_;
  std::vector<Group> groups_;
  float* scratch_;
};

}  // namespace pathnet
