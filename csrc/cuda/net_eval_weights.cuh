#pragma once
// net_eval: the arguments of the kernel, and the weights on their way through a ring in shared
// memory.
#include "net_eval_tile.cuh"

namespace pathnet {

constexpr int kSliceBytes = kThreads * 16;  // every thread copies 16 bytes of each slice
constexpr int kSlots = 3;                   // one slice is read, two are on their way
constexpr int kRingBytes = kSlots * kSliceBytes;
enum Vector {
  kFirstBias,
  kSecondBias,
  kShortcutBias,
  kNormScale = kShortcutBias,
  kNormShift,
  kVectors
};

// Block b is number b + 1 in `first_slice` and `vectors`, and number 0 is the stem with the last
// batch norm.
struct NetEvalPlan {
  const void* images;        // [N, channels, height, width], any strides
  int64_t image_strides[4];  // in elements
  const unsigned char*
      weights;  // slices; those of a block: its shortcut's, its first, its second convolution's
  const int* first_slice;                // [blocks + 2]
  const float* vectors;                  // [1 + blocks, kVectors, 4 width]
  const float* classifier;               // [classes, 4 width], then the bias [classes]
  const int8_t* gates;                   // [masks, blocks], a column a position, as the two below
  const int* order;                      // the block that stands there
  const float* scales;                   // s
  void* logits;                          // [thread blocks, classes]
  int64_t masks;                         // thread block r takes mask r % masks
  int64_t repeat;                        // and image r / repeat
  int channels, height, width, classes;  // of an image
  int stage_blocks[3];
  int shortcut_slices[2];  // of the projections of both strided blocks; 0 where shortcuts pad
  int pad_before[2];       // zero channels before those of x, of the two strided blocks

  __host__ __device__ int blocks() const {
    return stage_blocks[0] + stage_blocks[1] + stage_blocks[2];
  }
};

// The slices of all blocks that are alive, in the order in which the convolutions need them.
class WeightStream {
 public:
  __device__ WeightStream(const NetEvalPlan& plan, int mask) : plan_(plan), mask_(mask) {
    end_ = __ldg(plan.first_slice + 1);
    for (int i = 0; i < kSlots - 1; ++i) fetch(i);
  }

  // The next slice, for all threads: the barrier also says that nobody reads the slice before it
  // any more.
  __device__ __forceinline__ const uint4* next() {
    copy_async_wait<kSlots - 2>();
    __syncthreads();
    fetch(slot_ == 0 ? kSlots - 1 : slot_ - 1);
    const unsigned char* slice = dynamic_shared() + slot_ * kSliceBytes;
    slot_ = slot_ == kSlots - 1 ? 0 : slot_ + 1;
    return reinterpret_cast<const uint4*>(slice);
  }

 private:
  __device__ __forceinline__ void fetch(int slot) {
    if (slice_ < end_) {
      copy_async_16(dynamic_shared() + slot * kSliceBytes + threadIdx.x * 16,
                    plan_.weights + static_cast<int64_t>(slice_) * kSliceBytes + threadIdx.x * 16);
      if (++slice_ == end_) find_next_block();
    }
    copy_async_commit();  // an empty group too, so that the count of groups is that of slices
  }

  __device__ void find_next_block() {
    const int64_t row = static_cast<int64_t>(mask_) * plan_.blocks();
    while (++position_ < plan_.blocks()) {
      const int* first = plan_.first_slice + 1 + __ldg(plan_.order + row + position_);
      slice_ = __ldg(first);
      const bool off = __ldg(plan_.gates + row + position_) == 0;
      end_ = off ? slice_ + shortcut_slices() : __ldg(first + 1);
      if (slice_ < end_) return;
    }
    slice_ = end_;
  }

  __device__ int shortcut_slices() const {
    const int first = plan_.stage_blocks[0], second = first + plan_.stage_blocks[1];
    return position_ == first    ? plan_.shortcut_slices[0]
           : position_ == second ? plan_.shortcut_slices[1]
                                 : 0;
  }

  const NetEvalPlan& plan_;
  const int mask_;
  int position_ = -1, slice_ = 0, end_, slot_ = 0;
};

}  // namespace pathnet
