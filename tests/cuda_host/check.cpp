// Check mode: a shadow of shared and global memory, and asynchronous copies. See simt.h.
//
// The kernel is compiled with -fsanitize=thread but linked without its runtime: the hooks at the
// end of this file take its place. Threads are ordered by barriers of the block, and inside a warp
// by __syncwarp; by nothing else.
#include <map>
#include <string>
#include <vector>

#include "runtime.h"

namespace simt {
namespace {

struct Cell {                                // what is known about one byte
  int written = -1, read = -1;               // block epochs
  int writer = -1, reader = -1;              // threads; the reader is the last one
  int writer_epoch = 0, reader_epoch = 0;    // the threads' warp epochs then
  bool several = false, many_warps = false;  // threads, and warps, have read it in this block epoch
  bool initialised = false, pending = false;
  int block = -1;  // that wrote it in this launch
};

struct Region {
  std::string name;
  uintptr_t begin;
  size_t bytes;
  bool read_only, initialised, shared;
  std::vector<Cell> cells;
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
std::vector<Region> regions;  // the first is the block's shared memory
std::vector<Copies> copies;
std::vector<int> warp_epochs;
int block_epoch, block_number;
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
  fail("%s: thread %d of block %d, byte %zu of %s, at %s", what, current->number, block_number,
       offset, region.name.c_str(), text(place).c_str());
}

// Whether what `thread` did at its warp epoch `then` came before the current thread's access.
bool ordered(int thread, int then) {
  return thread == current->number ||
         (thread / 32 == current->warp && then < warp_epochs[current->number]);
}

const char* conflict(const Cell& cell, bool write, bool shared) {
  if (!shared && cell.block >= 0 && cell.block != block_number) return "race between blocks";
  if (cell.written == block_epoch && !ordered(cell.writer, cell.writer_epoch)) return "race";
  if (!write || cell.read != block_epoch) return nullptr;
  const int reader =
      cell.several && cell.reader == current->number ? current->number ^ 1 : cell.reader;
  if (cell.many_warps || !ordered(reader, cell.reader_epoch)) return "race";
  return nullptr;
}

void mark(Cell& cell, bool write, bool shared) {
  const int thread = current->number, epoch = warp_epochs[thread];
  if (write) {
    cell.written = block_epoch, cell.writer = thread, cell.writer_epoch = epoch,
    cell.initialised = true;
    if (!shared) cell.block = block_number;
    return;
  }
  const bool again = cell.read == block_epoch;
  cell.many_warps = again && (cell.many_warps || cell.reader / 32 != current->warp);
  cell.several = again && cell.reader_epoch == epoch && (cell.several || cell.reader != thread);
  cell.read = block_epoch, cell.reader = thread, cell.reader_epoch = epoch;
}

void access(uintptr_t address, int bytes, bool write, Place place) {
  if (!checking || current == nullptr || is_private(address)) return;
  if (address - reinterpret_cast<uintptr_t>(arguments_begin) <
      static_cast<size_t>(arguments_end - arguments_begin))
    return;
  for (Region& region : regions) {
    if (address - region.begin >= region.bytes) continue;
    const size_t offset = address - region.begin;
    if (offset + bytes > region.bytes) return complain("out of bounds", region, offset, place);
    if (write && region.read_only) return complain("write to an input", region, offset, place);
    for (size_t i = offset; i < offset + bytes; ++i) {
      Cell& cell = region.cells[i];
      if (cell.pending) return complain("asynchronous copy not waited for", region, i, place);
      if (!write && !cell.initialised) return complain("uninitialised read", region, i, place);
      if (const char* what = conflict(cell, write, region.shared))
        return complain(what, region, i, place);
      mark(cell, write, region.shared);
    }
    return;
  }
  fail("out of bounds: thread %d of block %d, address %#zx, %s of %d bytes at %s", current->number,
       block_number, static_cast<size_t>(address), write ? "write" : "read", bytes,
       text(place).c_str());
}

void set_pending(const void* to, int bytes, bool pending) {
  Region& shared = regions.front();
  const size_t offset = reinterpret_cast<uintptr_t>(to) - shared.begin;
  for (int i = 0; checking && i < bytes; ++i) shared.cells[offset + i].pending = pending;
}

void arrive(const Copy& copy) {
  set_pending(copy.to, copy.bytes, false);
  touch(copy.to, copy.bytes, true, copy.at);
  std::memcpy(copy.to, copy.from, copy.bytes);
}

}  // namespace

void touch(const void* address, int bytes, bool write, Where at) {
  access(reinterpret_cast<uintptr_t>(address), bytes, write, {at, nullptr});
}

void copy_async(void* to, const void* from, int bytes, Where at) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % bytes != 0) {
    fail("misaligned asynchronous copy at %s:%d", at.file, at.line);
  }
  touch(from, bytes, false, at);
  touch(to, bytes, true, at);
  set_pending(to, bytes, true);
  std::memset(to, 0xff, bytes);  // until it arrives
  copies[current->number].open.push_back({to, from, bytes, at});
}

void commit_async() {
  Copies& mine = copies[current->number];
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
}

void wait_async(int groups_left) {
  auto& groups = copies[current->number].groups;
  while (static_cast<int>(groups.size()) > groups_left) {
    for (const Copy& copy : groups.front()) arrive(copy);
    groups.erase(groups.begin());
  }
}

void finish_copies() {
  Copies& mine = copies[current->number];
  bool open = !mine.open.empty();
  for (const auto& group : mine.groups) open |= !group.empty();
  if (open) fail("asynchronous copy not waited for: thread %d ends before it", current->number);
}

void begin_launch(const void* arguments, size_t bytes) {
  arguments_begin = static_cast<const char*>(arguments), arguments_end = arguments_begin + bytes;
  block_epoch = 0;
  for (Region& region : regions) {
    Cell fresh;
    fresh.initialised = region.initialised;
    region.cells.assign(checking ? region.bytes : 0, fresh);
  }
  regions.insert(regions.begin(), {"shared memory", 0, 0, false, false, true, {}});
}

void begin_block(int block, const void* shared, size_t bytes, int threads) {
  ++block_epoch;
  block_number = block;
  copies.assign(threads, {});
  warp_epochs.assign(threads, 0);
  Region& region = regions.front();
  region.begin = reinterpret_cast<uintptr_t>(shared), region.bytes = bytes;
  region.cells.assign(checking ? bytes : 0, {});
}

void next_block_epoch() { ++block_epoch; }
void next_warp_epoch(int thread) { ++warp_epochs[thread]; }

}  // namespace simt

extern "C" {
void simt_buffers(int checking) {
  simt::checking = checking != 0;
  simt::regions.clear();
}
void simt_buffer(const char* name, const void* begin, size_t bytes, int read_only,
                 int initialised) {
  simt::regions.push_back({name,
                           reinterpret_cast<uintptr_t>(begin),
                           bytes,
                           read_only != 0,
                           initialised != 0,
                           false,
                           {}});
}

#define HOOK(name, bytes, write)                                     \
  void name##bytes(void* address) {                                  \
    simt::access(reinterpret_cast<uintptr_t>(address), bytes, write, \
                 {{}, __builtin_return_address(0)});                 \
  }
#define HOOKS(bytes)                        \
  HOOK(__tsan_read, bytes, false)           \
  HOOK(__tsan_write, bytes, true)           \
  HOOK(__tsan_unaligned_read, bytes, false) \
  HOOK(__tsan_unaligned_write, bytes, true)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* address, size_t bytes) {
  simt::access(reinterpret_cast<uintptr_t>(address), bytes, false,
               {{}, __builtin_return_address(0)});
}
void __tsan_write_range(void* address, size_t bytes) {
  simt::access(reinterpret_cast<uintptr_t>(address), bytes, true,
               {{}, __builtin_return_address(0)});
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
