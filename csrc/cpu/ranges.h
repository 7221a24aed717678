#pragma once
// Numbers shared out to workers in runs: each counts through a run of its own, so that what it
// reads ahead is its next; whoever has none left takes the last one of another's.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace pathnet {

class Ranges {
 public:
  // The numbers 0 ... count - 1, of at most 32 bits.
  Ranges(int64_t count, int64_t workers) : ranges_(workers) {
    for (int64_t w = 0; w < workers; ++w)
      ranges_[w].bits = pack(w * count / workers, (w + 1) * count / workers);
  }

  // The next number for a worker, or -1 if none is left.
  int64_t take(int64_t worker) {
    for (int64_t from = worker; from >= 0; from = longest()) {
      std::atomic<uint64_t>& bits = ranges_[from].bits;
      for (uint64_t seen = bits; length(seen) > 0;) {
        const bool own = from == worker;
        const int64_t first = first_of(seen) + own, end = end_of(seen) - !own;
        if (bits.compare_exchange_weak(seen, pack(first, end))) return own ? first - 1 : end;
      }
    }
    return -1;
  }

 private:
  struct alignas(64) Range {  // a cache line each
    std::atomic<uint64_t> bits{0};
  };

  static uint64_t pack(uint64_t first, uint64_t end) { return first << 32 | end; }
  static int64_t first_of(uint64_t bits) { return bits >> 32; }
  static int64_t end_of(uint64_t bits) { return bits & UINT32_MAX; }
  static int64_t length(uint64_t bits) { return end_of(bits) - first_of(bits); }

  // The range with most left, or -1.
  int64_t longest() const {
    int64_t best = -1, most = 0;
    for (size_t w = 0; w < ranges_.size(); ++w)
      if (const int64_t left = length(ranges_[w].bits); left > most) best = w, most = left;
    return best;
  }

  std::vector<Range> ranges_;
};

}  // namespace pathnet
