// Atomics: other threads may run before and after one. See simt.h.
#include "runtime.h"

namespace simt {
namespace {

template <class T>
T add(T* address, T value, Order order, Where at) {
  static_assert(sizeof(T) == 4, "atomics here have four bytes");
  interleave();
  atomic(address, order, at);
  const T before = *address;
  *address = before + value;
  interleave();
  return before;
}

}  // namespace

int atomic_add(int* address, int value, Order order, Where at) {
  return add(address, value, order, at);
}
unsigned atomic_add(unsigned* address, unsigned value, Order order, Where at) {
  return add(address, value, order, at);
}
float atomic_add(float* address, float value, Order order, Where at) {
  return add(address, value, order, at);
}

}  // namespace simt
