#pragma once
// Memory that is kept between calls: to touch fresh pages costs as much as the arithmetic on them.
#include <atomic>
#include <memory>
#include <utility>

#include "recycled.h"

namespace pathnet {

// Keeps one piece of memory. Calls that overlap find the place empty and allocate their own. It
// takes no lock, so that a fork at any moment leaves it usable.
class Keeper {
 public:
  constexpr Keeper() = default;  // never destroyed: the allocator may be gone by then

  std::unique_ptr<Tensor> take(int64_t floats, const std::string& name) {
    std::unique_ptr<Tensor> kept(place_.exchange(nullptr));
    if (kept != nullptr && kept->size(0) >= floats) return kept;
    kept.reset();  // before the new one, so that both are never there
    return std::make_unique<Tensor>(allocate_recycled({floats}, name));
  }

  void give_back(std::unique_ptr<Tensor> memory) {
    constexpr int64_t kMost = int64_t{32} << 20;  // floats
    if (memory == nullptr || memory->size(0) > kMost) return;
    delete place_.exchange(memory.release());
  }

 private:
  std::atomic<Tensor*> place_{nullptr};
};

// Memory lent by a keeper for the length of a scope.
class Lent {
 public:
  Lent(Keeper& keeper, int64_t floats, const std::string& name)
      : keeper_(keeper), memory_(keeper.take(floats, name)) {}
  ~Lent() { keeper_.give_back(std::move(memory_)); }
  Lent(Lent&&) = default;  // what was moved from gives back nothing
  float* data() { return memory_->mutable_data_ptr<float>(); }

 private:
  Keeper& keeper_;
  std::unique_ptr<Tensor> memory_;
};

}  // namespace pathnet
