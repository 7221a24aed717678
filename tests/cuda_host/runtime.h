#pragma once
// What the parts of the host runtime ask of one another.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "simt.h"

namespace simt {

// scheduler.cpp
void record(const char* format, ...)
    __attribute__((format(printf, 1, 2)));  // the first failure of a launch is kept
void stop();                                // the current thread, for good
void interleave();                          // another thread may go first
bool is_private(uintptr_t address);         // a thread's stack, threadIdx and the like

template <class... Values>
void fail(const char* format, Values... values) {
  record(format, values...);
  stop();
}

// check.cpp
void begin_launch(const void* arguments, size_t bytes, int resident);
void begin_block(int slot, int block, const void* shared, size_t bytes, int threads);
void atomic(const void* word, Order order, Where at);
void finish_copies();

}  // namespace simt
