// Ceilings of this machine: multiply-adds a second in registers, and bytes a second read and
// written at each level of the memory.
//
//   ceilings THREADS LEVEL=BYTES...     such as: ceilings 2 L1=24576 DRAM=268435456
//
// Every thread has buffers of its own with BYTES bytes. Prints a line a figure: LEVEL WHAT VALUE.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vec __attribute__((vector_size(4 * kLanes)));

constexpr double kSeconds = 0.4;  // of repeats, of which the best counts: a ceiling is undisturbed
constexpr int kLeastRepeats = 3;
constexpr long kBytesARepeat = 64L << 20;  // long beside the end of a thread, short beside
constexpr long kStepsARepeat = 1L << 19;   // the turn of another process: about 1 ms

// Keeps the compiler from removing work whose result nobody reads, or from doing it once for all.
inline void keep(const void* memory) { asm volatile("" : : "r"(memory) : "memory"); }

// Seconds of the best repeat of `work(thread)` on all threads at once, from when all stand ready.
double best_seconds(int threads, const std::function<void(int)>& work) {
  double best = 1e30, total = 0;
  for (int repeat = 0; repeat < kLeastRepeats || total < kSeconds; ++repeat) {
    std::atomic<int> ready{0};
    std::atomic<bool> go{false};
    std::vector<std::thread> others;
    auto wait_and_work = [&](int thread) {
      ++ready;
      while (!go) std::this_thread::yield();
      work(thread);
    };
    for (int t = 1; t < threads; ++t) others.emplace_back(wait_and_work, t);
    while (ready < threads - 1) std::this_thread::yield();
    auto start = std::chrono::steady_clock::now();
    go = true;
    work(0);
    for (auto& other : others) other.join();
    std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::min(best, taken.count());
    total += taken.count();
  }
  return best;
}

// Twelve chains: enough to fill two pipes of four to five cycles, few enough for sixteen registers.
void multiply_add_chains() {
  constexpr int kChains = 12;
  Vec sums[kChains];
  for (auto& sum : sums) sum = Vec{} + 1.0f;
  Vec factor = Vec{} + 0.5f, term = Vec{} + 0.5f;
  asm volatile("" : "+m"(factor), "+m"(term));  // unknown to the compiler, and the sums stay at 1
  const Vec a = factor, b = term;
  for (long step = 0; step < kStepsARepeat; ++step) {
#pragma GCC unroll 12
    for (int chain = 0; chain < kChains; ++chain) sums[chain] = sums[chain] * a + b;
  }
  keep(sums);
}

double multiply_adds_per_second(int threads) {
  double seconds = best_seconds(threads, [](int) { multiply_add_chains(); });
  return 12.0 * kLanes * kStepsARepeat * threads / seconds;
}

struct FreeAligned {
  void operator()(float* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<float, FreeAligned>;

void read_all(const float* memory, long vectors) {
  const Vec* from = reinterpret_cast<const Vec*>(memory);
  Vec sums[8] = {};
  for (long i = 0; i < vectors; i += 8) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) sums[j] += from[i + j];
  }
  keep(sums);
}

void write_all(float* memory, long vectors) {
  Vec* to = reinterpret_cast<Vec*>(memory);
  const Vec value = Vec{} + 1.0f;
  for (long i = 0; i < vectors; ++i) {
    to[i] = value;
    asm volatile("" : : : "memory");  // no call of memset, which chooses its own way
  }
  keep(memory);
}

// Past the caches, so that memory is not read before it is overwritten.
void stream_all(float* memory, long vectors) {
#if defined(__x86_64__)
  for (long i = 0; i < vectors * kLanes; i += 4) _mm_stream_ps(memory + i, _mm_set1_ps(1.0f));
  _mm_sfence();
#else
  write_all(memory, vectors);
#endif
}

template <class Pass>  // Pass(buffer, vectors) goes through a buffer once
double bytes_per_second(int threads, std::vector<Buffer>& buffers, long bytes, Pass pass) {
  const long passes = std::max(1L, kBytesARepeat / bytes);
  const long vectors = bytes / static_cast<long>(sizeof(Vec));
  double seconds = best_seconds(threads, [&](int thread) {
    for (long i = 0; i < passes; ++i) pass(buffers[thread].get(), vectors);
  });
  return static_cast<double>(vectors) * sizeof(Vec) * passes * threads / seconds;
}

int measure_level(int threads, const std::string& name, long bytes) {
  bytes = std::max(4096L, bytes / 4096 * 4096);
  std::vector<Buffer> buffers;
  for (int t = 0; t < threads; ++t) {
    buffers.emplace_back(static_cast<float*>(std::aligned_alloc(4096, bytes)));
    if (!buffers.back()) {
      std::fprintf(stderr, "no memory for %ld bytes a thread\n", bytes);
      return 1;
    }
    std::memset(buffers.back().get(), 0, bytes);
  }
  auto print = [&](const char* what, auto pass) {
    std::printf("%s %s %.6g\n", name.c_str(), what,
                bytes_per_second(threads, buffers, bytes, pass));
  };
  print("read", read_all);
  print("write", write_all);
  if (name == "DRAM") print("stream", stream_all);
  return 0;
}

}  // namespace

int main(int count, char** words) {
  const int threads = count > 1 ? std::atoi(words[1]) : 0;
  if (threads < 1) {
    std::fprintf(stderr, "usage: ceilings THREADS LEVEL=BYTES...\n");
    return 2;
  }
  std::printf("FMA multiply-add %.6g\n", multiply_adds_per_second(threads));
  for (int i = 2; i < count; ++i) {
    const std::string word = words[i];
    const auto equals = word.find('=');
    if (equals == std::string::npos) return 2;
    if (measure_level(threads, word.substr(0, equals), std::atol(word.c_str() + equals + 1)) != 0)
      return 1;
  }
  return 0;
}
