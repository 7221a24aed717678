// Threads as fibers: who runs next, barriers, calls of a whole warp. See simt.h.
#include <sys/mman.h>

#include <functional>
#include <memory>
#include <queue>
#include <string>
#include <vector>

#include "runtime.h"

namespace simt {

Thread* current = nullptr;

namespace {

constexpr size_t kStack = 128 << 10, kPage = 4096;
enum Schedule { kInOrder, kRandom, kSkewedByWarp, kSkewedByThread };
enum State { kReady, kAtBarrier, kInWarp, kDone };

struct Fiber : Thread {
  void* stack_pointer;
  State state;
  Where at;
};

struct Meeting {  // lanes of a warp on their way to one call
  unsigned mask = 0, arrived = 0;
  WarpFunction run = nullptr;
  Where at{};
  void* lanes[32] = {};
};

struct Warp {
  std::vector<Meeting> meetings;
};

struct Ready {
  uint64_t key;
  int thread;
  bool operator<(const Ready& other) const {
    return key > other.key;
  }  // the smallest key runs first
};

struct Stacks {
  char* begin = nullptr;
  size_t bytes = 0;
  void fit(int threads) {
    if (bytes >= threads * kStack) return;
    if (begin != nullptr) munmap(begin, bytes);
    bytes = threads * kStack;
    begin = static_cast<char*>(
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (int i = 0; i < threads; ++i)
      mprotect(begin + i * kStack, kPage, PROT_NONE);  // an overflow stops here
  }
};

Stacks stacks;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::priority_queue<Ready> ready;
std::vector<uint64_t> priorities;  // one a thread, of the skewed schedules
int schedule = kInOrder, alive, waiting;
uint64_t random_state = 1;
std::string failure;
unsigned char* shared = nullptr;
void* main_stack_pointer;
void (*kernel)(void*);
void* kernel_arguments;

uint64_t draw() {  // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return (z ^ z >> 31) >> 1;
}

#ifndef __x86_64__
#error "The switch between fibers is written for x86-64."
#endif
extern "C" void simt_switch(void** save, void* load);  // keep this stack, go on with that one
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
simt_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");

Fiber& self() { return *static_cast<Fiber*>(current); }

void leave(State state, Where at) {
  Fiber& fiber = self();
  fiber.state = state, fiber.at = at;
  simt_switch(&fiber.stack_pointer, main_stack_pointer);
}

void enter() {
  kernel(kernel_arguments);
  finish_copies();
  --alive;
  leave(kDone, {"", 0});
}

void enqueue(int thread) {
  const uint64_t key = schedule == kInOrder  ? thread
                       : schedule == kRandom ? draw()
                                             : priorities[thread];
  fibers[thread].state = kReady;
  ready.push({key, thread});
}

void draw_priorities() {
  for (size_t i = 0; i < priorities.size(); ++i) {
    const bool leads = schedule == kSkewedByThread || i % 32 == 0;
    priorities[i] = leads ? draw() >> 8 : priorities[i - 1] + 1;
  }
}

void release_barrier() {
  Where at{};
  for (const Fiber& fiber : fibers) {
    if (fiber.state != kAtBarrier) continue;
    if (at.file != nullptr && at.line != fiber.at.line) {
      return record("barrier divergence: thread %d waits at line %d and another at line %d",
                    fiber.number, fiber.at.line, at.line);
    }
    at = fiber.at;
  }
  waiting = 0;
  next_block_epoch();
  draw_priorities();  // another warp, another thread is ahead
  for (const Fiber& fiber : fibers) {
    if (fiber.state == kAtBarrier) enqueue(fiber.number);
  }
}

void report_deadlock() {
  for (const Fiber& fiber : fibers) {
    if (fiber.state == kInWarp) {
      record("deadlock: thread %d waits for its warp at %s:%d", fiber.number, fiber.at.file,
             fiber.at.line);
      return;
    }
  }
  record("deadlock: a barrier is not reached by all threads");
}

void prepare_fiber(int i, dim3 block, dim3 size, dim3 grid) {
  Fiber& fiber = fibers[i];
  fiber.number = i, fiber.lane = i % 32, fiber.warp = i / 32;
  fiber.index = dim3(i % size.x, i / size.x % size.y, i / (size.x * size.y));
  fiber.block = block, fiber.block_size = size, fiber.grid_size = grid;
  void** top = reinterpret_cast<void**>(stacks.begin + (i + 1) * kStack) - 2;
  *top = reinterpret_cast<void*>(&enter);
  fiber.stack_pointer = top - 6;  // six registers below the return address
}

void run_block(dim3 block, dim3 size, dim3 grid) {
  const int threads = size.x * size.y * size.z;
  alive = threads, waiting = 0, ready = {};
  warps.assign((threads + 31) / 32, {});
  draw_priorities();
  for (int i = 0; i < threads; ++i) prepare_fiber(i, block, size, grid), enqueue(i);
  while (alive > 0 && failure.empty()) {
    if (waiting == alive) {
      release_barrier();
      continue;
    }
    if (ready.empty()) return report_deadlock();
    Fiber& fiber = fibers[ready.top().thread];
    ready.pop();
    current = &fiber;
    simt_switch(&main_stack_pointer, fiber.stack_pointer);
  }
}

}  // namespace

bool is_private(uintptr_t address) {
  auto within = [address](const void* begin, size_t bytes) {
    return address - reinterpret_cast<uintptr_t>(begin) < bytes;
  };
  return within(stacks.begin, stacks.bytes) ||
         within(fibers.data(), fibers.size() * sizeof(Fiber)) || within(&current, sizeof current);
}

void record(const char* format, ...) {
  if (!failure.empty()) return;
  char text[512];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  failure = text;
}

void stop() {  // the fiber is left as it is: its launch has failed
  if (current != nullptr) leave(kDone, {"", 0});
}

void barrier(Where at) {
  ++waiting;
  leave(kAtBarrier, at);
}

void meet(unsigned mask, WarpFunction run, void* mine, Where at) {
  Warp& warp = warps[current->warp];
  const int lane = current->lane;
  if ((mask >> lane & 1) == 0)
    fail("thread %d is not in its own mask at %s:%d", current->number, at.file, at.line);
  Meeting* meeting = nullptr;
  for (Meeting& open : warp.meetings) {
    if (open.mask == mask && open.arrived != 0) meeting = &open;
  }
  for (Meeting& closed : warp.meetings) {
    if (meeting == nullptr && closed.arrived == 0) meeting = &closed;
  }
  if (meeting == nullptr) meeting = &warp.meetings.emplace_back();
  if (meeting->arrived == 0) *meeting = {mask, 0, run, at, {}};
  if (meeting->run != run || meeting->at.line != at.line) {
    fail("divergence: lanes of one warp make different calls at %s:%d and line %d", at.file,
         at.line, meeting->at.line);
  }
  meeting->arrived |= 1u << lane;
  meeting->lanes[lane] = mine;
  if (meeting->arrived != mask) return leave(kInWarp, at);
  run(meeting->lanes);
  meeting->arrived = 0;
  for (int other = 0; other < 32; ++other) {
    if ((mask >> other & 1) == 0) continue;
    if (run == nothing) next_warp_epoch(current->warp * 32 + other);
    if (other != lane) enqueue(current->warp * 32 + other);
  }
}

void* shared_memory() { return shared; }

int launch(dim3 grid, dim3 size, size_t shared_bytes, void (*body)(void*), void* arguments,
           size_t bytes) {
  const int threads = size.x * size.y * size.z;
  failure.clear();
  stacks.fit(threads);
  fibers.assign(threads, {});
  priorities.assign(threads, 0);
  kernel = body, kernel_arguments = arguments;
  std::unique_ptr<unsigned char, void (*)(void*)> memory(
      static_cast<unsigned char*>(std::aligned_alloc(128, (shared_bytes + 255) / 128 * 128)),
      std::free);
  shared = memory.get();
  begin_launch(arguments, bytes);
  for (unsigned i = 0; i < grid.x * grid.y * grid.z && failure.empty(); ++i) {
    std::memset(shared, 0xff, shared_bytes);  // NaN in every format
    begin_block(i, shared, shared_bytes, threads);
    run_block(dim3(i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)), size, grid);
  }
  current = nullptr;
  return failure.empty() ? 0 : 1;
}

}  // namespace simt

extern "C" void simt_configure(int schedule, uint64_t seed) {
  simt::schedule = schedule;
  simt::random_state = seed;
}
extern "C" const char* simt_failure() { return simt::failure.c_str(); }
