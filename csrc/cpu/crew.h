#pragma once
// Threads that share one piece of work after another: a leader hands out its parts, whoever is free
// takes the next one. Nobody waits for a thread that has not come: a leader without helpers runs
// all parts itself.
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pathnet {

class Crew {
 public:
  using Work = std::function<void(int64_t part, float* scratch)>;

  explicit Crew(int64_t threads) : threads_(threads) {}

  int64_t threads() const { return threads_; }  // at most, the leader among them

  // The leader's: returns when work(0 ... parts - 1) is done. `scratch` is the memory of the thread
  // that calls.
  void run(int64_t parts, const Work& work, float* scratch) {
    work_ = &work, first_ = opened_.load(std::memory_order_relaxed);
    opened_.store(first_ + parts, std::memory_order_release);
    take_parts(scratch);
    wait([&] { return done_.load(std::memory_order_acquire) == first_ + parts; });
  }
  // Whoever leads a crew holds one; its end sends the helpers away.
  class Lead {
   public:
    explicit Lead(Crew& crew) : crew_(crew) {}
    ~Lead() { crew_.dismissed_.store(true, std::memory_order_release); }

   private:
    Crew& crew_;
  };

  // A helper's: returns when the leader is through.
  void help(float* scratch) {
    wait([&] {
      take_parts(scratch);
      return dismissed_.load(std::memory_order_acquire);
    });
  }

 private:
  // Parts are counted through. A leader opens new ones only when all before are done, so that
  // whoever has taken one reads the work that it belongs to.
  void take_parts(float* scratch) {
    for (int64_t part = taken_.load(); part < opened_.load(std::memory_order_acquire);) {
      if (!taken_.compare_exchange_weak(part, part + 1)) continue;
      (*work_)(part - first_, scratch);
      done_.fetch_add(1, std::memory_order_release);
      part = taken_.load();
    }
  }

  // Spins, since work comes every few microseconds; now and then it lets others have the processor.
  template <typename Condition>
  static void wait(const Condition& holds) {
    constexpr int kSpins = 1000;
    for (int spins = 0; !holds(); ++spins) {
      if (spins % kSpins == kSpins - 1) std::this_thread::yield();
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
  }

  const int64_t threads_;
  const Work* work_ = nullptr;
  int64_t first_ = 0;  // part of `work_`
  std::atomic<int64_t> opened_{0}, taken_{0}, done_{0};
  std::atomic<bool> dismissed_{false};
};

}  // namespace pathnet
