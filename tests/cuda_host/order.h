#pragma once
// What came before what: barriers order a thread block, __syncwarp a warp, and atomics carry order
// from one thread to another, of any thread block, as release and acquire or as fences around them
// say.
#include <cstdint>
#include <map>
#include <utility>

#include "simt.h"

namespace simt {

// Who did something, and when: after how many barriers of its thread block, calls of __syncwarp and
// releases of its own.
struct Stamp {
  int block = -1, thread = 0, epoch = 0, warp_epoch = 0, releases = 0;
};

// Of each thread that released something, the latest release that has been heard of.
class Clock {
 public:
  void add(const Stamp& release) { latest_[{release.block, release.thread}] = release; }
  void join(const Clock& other);
  bool covers(const Stamp& then) const;
  bool empty() const { return latest_.empty(); }

 private:
  std::map<std::pair<int, int>, Stamp> latest_;
};

void begin_order(int resident, int threads);
void begin_block_order(int slot, int block);
void order_block(int slot);                // a barrier
void order_warp(int warp, unsigned mask);  // __syncwarp, of the current thread block
Stamp now();                               // of the current thread

bool heard_of(const Stamp& then);  // through an atomic
inline bool ordered(const Stamp& then, const Stamp& now) {
  if (then.block == now.block) {
    if (then.epoch < now.epoch || then.thread == now.thread) return true;
    if (then.thread / 32 == now.thread / 32 && then.warp_epoch < now.warp_epoch) return true;
  }
  return heard_of(then);
}

// An atomic of the current thread, on a word through which this much has been released.
void pass_through(Clock& released, Order order);

}  // namespace simt
