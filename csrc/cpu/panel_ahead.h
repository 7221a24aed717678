// Prefetching for passes over panels of pixels: what the next panel reads is called while this one
// is multiplied.
#pragma once
#include <algorithm>

#include "simd.h"

namespace pathnet {
namespace {

// Up to six batches [images, blocks, pixels, 16], called into the second cache some lines a step.
class PanelAhead {
 public:
  // `pixels` of an image; `image` is the first one, from which pixels are counted through.
  PanelAhead(int64_t image, int64_t images, int64_t pixels)
      : image_(image), pixels_(pixels), end_((images - image) * pixels) {}

  void add(const float* batch, int64_t blocks) {
    const Stream stream{batch, blocks};
    if (batch == nullptr || std::find(streams_, streams_ + count_, stream) != streams_ + count_)
      return;
    streams_[count_++] = stream;
    blocks_ += blocks;
  }

  // Calls for the pixels first ... first + count - 1, as far as there are any, in so many steps.
  void aim(int64_t first, int64_t count, int64_t steps) {
    first_ = first, last_ = std::min(first + count, end_);
    lines_ = divide_up(std::max<int64_t>(last_ - first_, 0) * blocks_, steps);
    stream_ = block_ = left_ = 0;
    pixel_ = first_;
  }

  PATHNET_INLINE void step() {
    for (int64_t i = 0; i < lines_; ++i, at_ += kBlock, --left_) {
      if (left_ == 0 && !next_run()) return;
      __builtin_prefetch(at_, 0, 2);
    }
  }

 private:
  struct Stream {
    const float* batch;
    int64_t blocks;
    bool operator==(const Stream& other) const { return batch == other.batch; }
  };

  // The pixels of the next image in the same block, or of the next block or batch.
  bool next_run() {
    if (pixel_ >= last_) {
      pixel_ = first_;
      if (++block_ == streams_[stream_].blocks) block_ = 0, ++stream_;
    }
    if (stream_ >= count_) return false;
    const Stream& s = streams_[stream_];
    const int64_t image = image_ + pixel_ / pixels_, column = pixel_ % pixels_;
    at_ = s.batch + ((image * s.blocks + block_) * pixels_ + column) * kBlock;
    left_ = std::min(last_ - pixel_, pixels_ - column);
    pixel_ += left_;
    return true;
  }

  Stream streams_[6];
  int count_ = 0, stream_ = 0;
  int64_t image_, pixels_, end_, blocks_ = 0;
  int64_t first_ = 0, last_ = 0, lines_ = 0;  // of the panel
  int64_t block_ = 0, pixel_ = 0, left_ = 0;  // at hand
  const float* at_ = nullptr;
};

}  // namespace
}  // namespace pathnet
