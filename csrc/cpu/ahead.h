// Prefetching from inside a product loop: memory is read while the arithmetic runs.
#pragma once
#include <algorithm>

#include "simd.h"

namespace pathnet {
namespace {

// The next images of up to five batches, called into the second cache a piece a step.
class Ahead {
 public:
  Ahead(int64_t image, int64_t images, int64_t image_floats)
      : from_(image * image_floats), floats_(std::max<int64_t>(images, 0) * image_floats) {}

  void add(const float* batch) {
    if (batch == nullptr) return;
    const float* const stream = batch + from_;
    if (std::find(streams_, streams_ + count_, stream) == streams_ + count_)
      streams_[count_++] = stream;
  }

  // To be called before the first step: how many will come.
  void spread_over(int64_t steps) { piece_ = round_up(divide_up(floats_, steps), kBlock); }

  PATHNET_INLINE void step() {
    const int64_t end = std::min(at_ + piece_, floats_);
    for (int s = 0; s < count_; ++s)
      for (int64_t i = at_; i < end; i += kBlock) __builtin_prefetch(streams_[s] + i, 0, 2);
    at_ = end;
  }

 private:
  const float* streams_[5];
  int count_ = 0;
  int64_t from_, floats_, at_ = 0, piece_ = 0;
};

// For those who have nothing to read ahead.
struct NotAhead {
  void spread_over(int64_t) {}
  void step() {}
};

}  // namespace
}  // namespace pathnet
