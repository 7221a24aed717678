// Clocks of threads and thread blocks. See order.h.
#include "order.h"

#include <vector>

#include "runtime.h"

namespace simt {
namespace {

struct ThreadClock {
  int warp_epoch = 0, releases = 0;
  Clock known;   // of others, since the last barrier
  Clock seen;    // in words that relaxed atomics have read, until a fence
  Clock fenced;  // what a relaxed atomic releases: all that was known at the last fence
};

struct BlockClock {
  int number = 0, epoch = 0;
  Clock known;
  std::vector<ThreadClock> threads;
};

std::vector<BlockClock> blocks;  // the resident ones

BlockClock& my_block() { return blocks[current->slot]; }
ThreadClock& mine() { return my_block().threads[current->number]; }

// All that is known now, this thread's own accesses among it.
Clock release() {
  Stamp stamp = now();
  stamp.releases = ++mine().releases;
  Clock all = my_block().known;
  all.join(mine().known);
  all.add(stamp);
  return all;
}

}  // namespace

void Clock::join(const Clock& other) {
  for (const auto& [thread, release] : other.latest_) {
    Stamp& known = latest_[thread];
    if (known.block < 0 || known.releases < release.releases) known = release;
  }
}

bool Clock::covers(const Stamp& then) const {
  for (auto it = latest_.lower_bound({then.block, 0}); it != latest_.end(); ++it) {
    const Stamp& release = it->second;
    if (release.block != then.block) return false;
    if (then.epoch < release.epoch) return true;
    if (then.epoch > release.epoch) continue;
    if (then.thread == release.thread && then.releases < release.releases) return true;
    if (then.thread / 32 == release.thread / 32 && then.warp_epoch < release.warp_epoch)
      return true;
  }
  return false;
}

void begin_order(int resident, int threads) {
  blocks.assign(resident, {});
  for (BlockClock& block : blocks) block.threads.resize(threads);
}

void begin_block_order(int slot, int block) {
  const size_t threads = blocks[slot].threads.size();
  blocks[slot] = {};
  blocks[slot].number = block;
  blocks[slot].threads.resize(threads);
}

void order_block(int slot) {
  BlockClock& block = blocks[slot];
  ++block.epoch;
  for (ThreadClock& thread : block.threads) {
    if (thread.known.empty()) continue;
    block.known.join(thread.known);
    thread.known = {};
  }
}

void order_warp(int warp, unsigned mask) {
  auto& threads = my_block().threads;
  Clock known;
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) known.join(threads[warp * 32 + lane].known);
  }
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    ++threads[warp * 32 + lane].warp_epoch;
    threads[warp * 32 + lane].known = known;
  }
}

Stamp now() {
  const ThreadClock& thread = mine();
  return {my_block().number, current->number, my_block().epoch, thread.warp_epoch, thread.releases};
}

bool heard_of(const Stamp& then) {
  return mine().known.covers(then) || my_block().known.covers(then);
}

void pass_through(Clock& released, Order order) {
  ThreadClock& thread = mine();
  if (order == kAcquireRelease) {
    thread.known.join(released);
    released.join(release());
  } else {
    thread.seen.join(released);
    released.join(thread.fenced);
  }
}

void fence() {
  interleave();
  ThreadClock& thread = mine();
  thread.known.join(thread.seen);
  thread.seen = {};
  thread.fenced = release();
  interleave();
}

}  // namespace simt
