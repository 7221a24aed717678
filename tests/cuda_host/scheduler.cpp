// Threads as fibers: who runs next, barriers, calls of a whole warp. See simt.h.
#include <sys/mman.h>

#include <functional>
#include <memory>
#include <queue>
#include <string>
#include <vector>

#include "order.h"
#include "runtime.h"

namespace simt {

Thread* current = nullptr;

namespace {

constexpr size_t kStack = 128 << 10, kPage = 4096;
enum Schedule { kInOrder, kRandom, kSkewedByWarp, kSkewedByThread, kSkewedByBlock };
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

struct Block {  // a resident one
  int number, alive, waiting;
  std::vector<Warp> warps;
  unsigned char* shared;
};

struct Ready {
  uint64_t key;
  int fiber;
  bool operator<(const Ready& other) const {
    return key > other.key;
  }  // the smallest key runs first
};

struct Stacks {
  char* begin = nullptr;
  size_t bytes = 0;
  void map(int threads) {
    bytes = threads * kStack;
    begin = static_cast<char*>(
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (int i = 0; i < threads; ++i)
      mprotect(begin + i * kStack, kPage, PROT_NONE);  // an overflow stops here
  }
  // A process may hold 65530 mappings, and each kernel that a test loads would keep two a thread.
  void unmap() { munmap(begin, bytes); }
};

Stacks stacks;
std::vector<Block> blocks;
std::vector<Fiber> fibers;  // those of the first block, then of the next
std::priority_queue<Ready> ready;
std::vector<uint64_t> priorities;  // one a fiber, of the skewed schedules
int schedule = kInOrder, most_resident = 1, threads;
uint64_t random_state = 1;
std::string failure;
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
Block& my_block() { return blocks[current->slot]; }
int first_fiber(int slot) { return slot * threads; }

void leave(State state, Where at) {
  Fiber& fiber = self();
  fiber.state = state, fiber.at = at;
  simt_switch(&fiber.stack_pointer, main_stack_pointer);
}

void enqueue(int fiber) {
  const uint64_t place = static_cast<uint64_t>(blocks[fibers[fiber].slot].number) * threads;
  const uint64_t key = schedule == kInOrder  ? place + fibers[fiber].number
                       : schedule == kRandom ? draw()
                                             : priorities[fiber];
  fibers[fiber].state = kReady;
  ready.push({key, fiber});
}

void draw_priorities(int slot) {
  const int together = schedule == kSkewedByThread ? 1 : schedule == kSkewedByWarp ? 32 : threads;
  uint64_t* mine = priorities.data() + first_fiber(slot);
  for (int i = 0; i < threads; ++i) mine[i] = i % together == 0 ? draw() >> 8 : mine[i - 1] + 1;
}

void release_barrier(int slot) {
  Block& block = blocks[slot];
  Fiber* mine = fibers.data() + first_fiber(slot);
  Where at{};
  for (int i = 0; i < threads; ++i) {
    if (mine[i].state != kAtBarrier) continue;
    if (at.file != nullptr && at.line != mine[i].at.line) {
      return record("barrier divergence: thread %d waits at line %d and another at line %d", i,
                    mine[i].at.line, at.line);
    }
    at = mine[i].at;
  }
  block.waiting = 0;
  order_block(slot);
  draw_priorities(slot);  // another warp, another thread is ahead
  for (int i = 0; i < threads; ++i) {
    if (mine[i].state == kAtBarrier) enqueue(first_fiber(slot) + i);
  }
}

void enter() {
  kernel(kernel_arguments);
  finish_copies();
  Block& block = my_block();
  self().state = kDone;
  --block.alive;
  if (block.alive > 0 && block.waiting == block.alive) release_barrier(current->slot);
  leave(kDone, {"", 0});
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

void prepare_fiber(int slot, int i, dim3 block, dim3 size, dim3 grid) {
  Fiber& fiber = fibers[first_fiber(slot) + i];
  fiber.number = i, fiber.lane = i % 32, fiber.warp = i / 32, fiber.slot = slot;
  fiber.index = dim3(i % size.x, i / size.x % size.y, i / (size.x * size.y));
  fiber.block = block, fiber.block_size = size, fiber.grid_size = grid;
  void** top = reinterpret_cast<void**>(stacks.begin + (first_fiber(slot) + i + 1) * kStack) - 2;
  *top = reinterpret_cast<void*>(&enter);
  fiber.stack_pointer = top - 6;  // six registers below the return address
}

void start_block(int slot, int number, dim3 size, dim3 grid, size_t shared_bytes) {
  Block& block = blocks[slot];
  block.number = number, block.alive = threads, block.waiting = 0;
  block.warps.assign((threads + 31) / 32, {});
  std::memset(block.shared, 0xff, shared_bytes);  // NaN in every format
  begin_block(slot, number, block.shared, shared_bytes, threads);
  begin_block_order(slot, number);
  draw_priorities(slot);
  const unsigned n = number;
  const dim3 place(n % grid.x, n / grid.x % grid.y, n / (grid.x * grid.y));
  for (int i = 0; i < threads; ++i) {
    prepare_fiber(slot, i, place, size, grid);
    enqueue(first_fiber(slot) + i);
  }
}

// All thread blocks, a new one wherever one has ended.
void run_blocks(dim3 size, dim3 grid, size_t shared_bytes) {
  const int count = grid.x * grid.y * grid.z;
  int started = 0, running = 0;
  while (failure.empty()) {
    for (size_t slot = 0; slot < blocks.size() && started < count; ++slot) {
      if (blocks[slot].alive > 0) continue;
      start_block(slot, started++, size, grid, shared_bytes);
      ++running;
    }
    if (running == 0) return;
    if (ready.empty()) return report_deadlock();
    const int fiber = ready.top().fiber;
    ready.pop();
    current = &fibers[fiber];
    simt_switch(&main_stack_pointer, fibers[fiber].stack_pointer);
    if (my_block().alive == 0) --running;
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

void interleave() {
  if (current == nullptr) return;
  draw_priorities(current->slot);
  enqueue(static_cast<int>(&self() - fibers.data()));
  simt_switch(&self().stack_pointer, main_stack_pointer);
}

void barrier(Where at) {
  Block& block = my_block();
  self().state = kAtBarrier, self().at = at;
  if (++block.waiting == block.alive) release_barrier(current->slot);
  simt_switch(&self().stack_pointer, main_stack_pointer);
}

void meet(unsigned mask, WarpFunction run, void* mine, Where at) {
  Warp& warp = my_block().warps[current->warp];
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
  if (run == nothing) order_warp(current->warp, mask);
  const int first = first_fiber(current->slot) + current->warp * 32;
  for (int other = 0; other < 32; ++other) {
    if ((mask >> other & 1) != 0 && other != lane) enqueue(first + other);
  }
}

void* shared_memory() { return my_block().shared; }

int launch(dim3 grid, dim3 size, size_t shared_bytes, void (*body)(void*), void* arguments,
           size_t bytes) {
  const int resident = std::min<unsigned>(most_resident, grid.x * grid.y * grid.z);
  threads = size.x * size.y * size.z;
  failure.clear();
  ready = {};
  stacks.map(resident * threads);
  fibers.assign(resident * threads, {});
  priorities.assign(resident * threads, 0);
  kernel = body, kernel_arguments = arguments;
  const size_t stride = (shared_bytes + 255) / 128 * 128;
  std::unique_ptr<unsigned char, void (*)(void*)> memory(
      static_cast<unsigned char*>(std::aligned_alloc(128, resident * stride)), std::free);
  blocks.assign(resident, {});
  for (int slot = 0; slot < resident; ++slot) blocks[slot].shared = memory.get() + slot * stride;
  begin_launch(arguments, bytes, resident);
  begin_order(resident, threads);
  run_blocks(size, grid, shared_bytes);
  current = nullptr;
  stacks.unmap();
  return failure.empty() ? 0 : 1;
}

}  // namespace simt

extern "C" void simt_configure(int schedule, uint64_t seed, int resident) {
  simt::schedule = schedule;
  simt::most_resident = resident;
  simt::random_state = seed;
}
extern "C" const char* simt_failure() { return simt::failure.c_str(); }
