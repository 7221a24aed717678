// Check mode: a shadow of shared and global memory, and asynchronous copies. See simt.h.
//
// The kernel is compiled with -fsanitize=thread but linked without its runtime: the hooks at the
// end of this file take its place.
#include <string>
#include <unordered_map>
#include <vector>

#include "order.h"
#include "runtime.h"

namespace simt {
namespace {

enum Kind { kRead, kWrite, kAtomic };

struct Cell {                                // what is known about one byte
  Stamp write, read;                         // the last ones
  bool several = false, many_warps = false;  // threads, and warps, have read it since that barrier
  bool other_blocks = false;                 // have read it, too: `earlier_readers` has them
  bool initialised = false, pending = false, by_atomic = false;
};

struct Region {
  std::string name;
  uintptr_t begin;
  size_t bytes;
  bool read_only, initialised;
  std::vector<Cell> cells;
  int64_t requested = 0;  // bytes that threads have asked to read or write, of all launches
};

struct Copy {
  void* to;
  const void* from;
  int bytes;
  Where at;
};

struct Copies {  // of one thread
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
};

struct Place {  // where an access stands: a line, or an address of the code
  Where at;
  const void* code;
};

bool checking = false;
std::vector<Region> regions;  // of global memory
std::vector<Region> shared;   // a resident block each
std::vector<std::vector<Copies>> copies;
std::unordered_map<uintptr_t, Clock> words;  // what atomics have released there
std::unordered_map<const Cell*, std::vector<Stamp>> earlier_readers;
const char *arguments_begin, *arguments_end;

std::string text(Place place) {
  char out[160];
  if (place.code != nullptr) {
    snprintf(out, sizeof out, "code address %p", place.code);
  } else {
    snprintf(out, sizeof out, "%s:%d", place.at.file, place.at.line);
  }
  return out;
}

void complain(const char* what, const Region& region, size_t offset, Place place) {
  fail("%s: thread %d of block %d, byte %zu of %s, at %s", what, current->number, now().block,
       offset, region.name.c_str(), text(place).c_str());
}

const char* race_with(const Stamp& then, const Stamp& now) {
  return then.block == now.block ? "race" : "race between blocks";
}

// Atomics of one word follow one another: who comes after the last of them comes after all.
const char* conflict_with_writes(const Cell& cell, Kind kind, const Stamp& now) {
  const bool both_atomic = cell.by_atomic && kind == kAtomic;
  if (cell.write.block < 0 || both_atomic || ordered(cell.write, now)) return nullptr;
  return race_with(cell.write, now);
}

const char* conflict_with_reads(const Cell& cell, const Stamp& now) {
  if (cell.read.block < 0) return nullptr;
  if (cell.other_blocks) {
    for (const Stamp& then : earlier_readers[&cell]) {
      if (!ordered(then, now)) return race_with(then, now);
    }
  }
  Stamp then = cell.read;
  if (then.block == now.block && then.epoch == now.epoch) {
    if (cell.many_warps) return "race";
    if (cell.several && then.thread == now.thread) then.thread ^= 1;
  }
  return ordered(then, now) ? nullptr : race_with(then, now);
}

void mark_read(Cell& cell, const Stamp& now) {
  const Stamp& last = cell.read;
  const bool again = last.block == now.block && last.epoch == now.epoch;
  if (last.block >= 0 && last.block != now.block) {
    cell.other_blocks = true;
    earlier_readers[&cell].push_back(last);
  }
  cell.many_warps = again && (cell.many_warps || last.thread / 32 != now.thread / 32);
  cell.several =
      again && last.warp_epoch == now.warp_epoch && (cell.several || last.thread != now.thread);
  cell.read = now;
}

void mark_written(Cell& cell, const Stamp& now, bool by_atomic) {
  cell.write = now, cell.initialised = true, cell.by_atomic = by_atomic;
  if (by_atomic) return;  // the next one is not ordered by it
  if (cell.other_blocks) earlier_readers.erase(&cell);
  cell.read = {}, cell.other_blocks = false;
}

void access_byte(const Region& region, Cell& cell, size_t offset, Kind kind, const Stamp& now,
                 Place place) {
  if (cell.pending) return complain("asynchronous copy not waited for", region, offset, place);
  if (kind != kWrite && !cell.initialised)
    return complain("uninitialised read", region, offset, place);
  const char* race = conflict_with_writes(cell, kind, now);
  if (race == nullptr && kind != kRead) race = conflict_with_reads(cell, now);
  if (race != nullptr) return complain(race, region, offset, place);
  if (kind == kWrite && cell.by_atomic) words.erase((region.begin + offset) & ~3);
  kind == kRead ? mark_read(cell, now) : mark_written(cell, now, kind == kAtomic);
}

Region* region_of(uintptr_t address) {
  Region& mine = shared[current->slot];
  if (address - mine.begin < mine.bytes) return &mine;
  for (Region& region : regions) {
    if (address - region.begin < region.bytes) return &region;
  }
  return nullptr;
}

void access(uintptr_t address, int bytes, Kind kind, Place place) {
  if (!checking || current == nullptr || is_private(address)) return;
  if (address - reinterpret_cast<uintptr_t>(arguments_begin) <
      static_cast<size_t>(arguments_end - arguments_begin))
    return;
  Region* region = region_of(address);
  if (region == nullptr) {
    fail("out of bounds: thread %d of block %d, address %#zx, %s of %d bytes at %s",
         current->number, now().block, static_cast<size_t>(address),
         kind == kRead ? "read" : "write", bytes, text(place).c_str());
    return;
  }
  const size_t offset = address - region->begin;
  if (offset + bytes > region->bytes) return complain("out of bounds", *region, offset, place);
  region->requested += bytes;
  if (region->read_only) {  // and so initialised, and free of races
    if (kind != kRead) complain("write to an input", *region, offset, place);
    return;
  }
  const Stamp stamp = now();
  for (size_t i = offset; i < offset + bytes; ++i)
    access_byte(*region, region->cells[i], i, kind, stamp, place);
}

void set_pending(const void* to, int bytes, bool pending) {
  Region& mine = shared[current->slot];
  const size_t offset = reinterpret_cast<uintptr_t>(to) - mine.begin;
  for (int i = 0; checking && i < bytes; ++i) mine.cells[offset + i].pending = pending;
}

void arrive(const Copy& copy) {
  set_pending(copy.to, copy.bytes, false);
  touch(copy.to, copy.bytes, true, copy.at);
  std::memcpy(copy.to, copy.from, copy.bytes);
}

}  // namespace

void touch(const void* address, int bytes, bool write, Where at) {
  access(reinterpret_cast<uintptr_t>(address), bytes, write ? kWrite : kRead, {at, nullptr});
}

void copy_async(void* to, const void* from, int bytes, Where at) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % bytes != 0) {
    fail("misaligned asynchronous copy at %s:%d", at.file, at.line);
  }
  touch(from, bytes, false, at);
  touch(to, bytes, true, at);
  set_pending(to, bytes, true);
  std::memset(to, 0xff, bytes);  // until it arrives
  copies[current->slot][current->number].open.push_back({to, from, bytes, at});
}

void commit_async() {
  Copies& mine = copies[current->slot][current->number];
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
}

void wait_async(int groups_left) {
  auto& groups = copies[current->slot][current->number].groups;
  while (static_cast<int>(groups.size()) > groups_left) {
    for (const Copy& copy : groups.front()) arrive(copy);
    groups.erase(groups.begin());
  }
}

void finish_copies() {
  Copies& mine = copies[current->slot][current->number];
  bool open = !mine.open.empty();
  for (const auto& group : mine.groups) open |= !group.empty();
  if (open) fail("asynchronous copy not waited for: thread %d ends before it", current->number);
}

// An atomic of four bytes by the current thread.
void atomic(const void* word, Order order, Where at) {
  const auto address = reinterpret_cast<uintptr_t>(word);
  access(address, 4, kAtomic, {at, nullptr});
  if (checking) pass_through(words[address], order);
}

void begin_launch(const void* arguments, size_t bytes, int resident) {
  arguments_begin = static_cast<const char*>(arguments), arguments_end = arguments_begin + bytes;
  words.clear(), earlier_readers.clear();
  for (Region& region : regions) {
    region.cells.resize(checking && !region.read_only ? region.bytes : 0);
    for (Cell& cell : region.cells) {  // what an earlier launch of the call has written is known
      const bool initialised = cell.initialised || region.initialised;
      cell = {};
      cell.initialised = initialised;
    }
  }
  copies.assign(resident, {});
  shared.assign(resident, {"shared memory", 0, 0, false, false, {}});
}

void begin_block(int slot, int block, const void* memory, size_t bytes, int threads) {
  copies[slot].assign(threads, {});
  Region& region = shared[slot];
  region.begin = reinterpret_cast<uintptr_t>(memory), region.bytes = bytes;
  region.cells.assign(checking ? bytes : 0, {});
  for (auto it = words.begin(); it != words.end();) {  // those of the block before it
    it = it->first - region.begin < bytes ? words.erase(it) : std::next(it);
  }
}

}  // namespace simt

extern "C" {
void simt_buffers(int checking) {
  simt::checking = checking != 0;
  simt::regions.clear();
}
void simt_buffer(const char* name, const void* begin, size_t bytes, int read_only,
                 int initialised) {
  simt::regions.push_back(
      {name, reinterpret_cast<uintptr_t>(begin), bytes, read_only != 0, initialised != 0, {}});
}
int64_t simt_requested(const void* begin) {
  for (const simt::Region& region : simt::regions)
    if (region.begin == reinterpret_cast<uintptr_t>(begin)) return region.requested;
  return 0;
}

#define HOOK(name, bytes, kind)                                           \
  void name##bytes(void* address) {                                       \
    simt::access(reinterpret_cast<uintptr_t>(address), bytes, simt::kind, \
                 {{}, __builtin_return_address(0)});                      \
  }
#define HOOKS(bytes)                        \
  HOOK(__tsan_read, bytes, kRead)           \
  HOOK(__tsan_write, bytes, kWrite)         \
  HOOK(__tsan_unaligned_read, bytes, kRead) \
  HOOK(__tsan_unaligned_write, bytes, kWrite)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* address, size_t bytes) {
  simt::access(reinterpret_cast<uintptr_t>(address), bytes, simt::kRead,
               {{}, __builtin_return_address(0)});
}
void __tsan_write_range(void* address, size_t bytes) {
  simt::access(reinterpret_cast<uintptr_t>(address), bytes, simt::kWrite,
               {{}, __builtin_return_address(0)});
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
