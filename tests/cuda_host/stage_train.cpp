// The launches of stage_train on the host; tests/cuda_host/stage_train.py calls them. `p` are
// arrays in the order of the comment, null where a run has none.
#include "launch.h"
#include "stage_train_traffic.h"

using namespace pathnet;
using namespace pathnet::train;

namespace {

struct Launch {
  int64_t count = 0;
  bool failed = false;

  template <class Kernel, class Plan>
  void operator()(Pass, Kernel* kernel, int blocks, int threads, int64_t shared, const Plan& plan) {
    ++count;
    failed = failed || simt::launch_kernel(kernel, blocks, threads, shared, plan);
  }
};

}  // namespace

// x, skip, weights, norms, reals; y, slots, counter, scratch (u1, u2, x, x, states), running, kept,
// launches
extern "C" int forward(void* const* p, const int64_t* n) {
  Pointers pointers(p);
  const void *x = pointers.next(), *skip = pointers.next();
  Pointers weights = pointers;
  const int convs = static_cast<int>(2 * n[4]);
  for (int i = 0; i < convs; ++i) pointers.next();
  Pointers norms = pointers;
  for (int i = 0; i < 2 * convs; ++i) pointers.next();
  const auto* reals = next_as<const double>(pointers);
  Numbers numbers(n);
  RunPlan run = read_run(weights, numbers, reals);
  run.x = x, run.skip = skip;
  read_norms(run, norms);
  void* y = pointers.next();
  run.slots = next_as<float>(pointers), run.counter = next_as<int>(pointers);
  Scratch scratch{};
  scratch.u1 = pointers.next(), scratch.u2 = pointers.next();
  for (void*& memory : scratch.x) memory = pointers.next();
  scratch.states = next_as<float>(pointers);
  read_running(run, pointers);
  read_kept(run, pointers);
  use_scratch(run, scratch);
  Launch launch;
  run_forward<OPERAND, CHANNELS>(run, y, launch);
  *next_as<int64_t>(pointers) = launch.count;
  return launch.failed;
}

// grad_y, x, weights, reals, kept; buffers (4), slopes, gradients, partial, total, slots, counter,
// answer (launches, buffer of x, buffer of skip)
extern "C" int backward(void* const* p, const int64_t* n) {
  Pointers pointers(p);
  BackwardRun out{};
  out.grad_y = pointers.next();
  const void* x = pointers.next();
  Pointers weights = pointers;
  for (int i = 0; i < 2 * n[4]; ++i) pointers.next();
  const auto* reals = next_as<const double>(pointers);
  Numbers numbers(n);
  RunPlan run = read_run(weights, numbers, reals);
  run.x = x;
  read_kept(run, pointers);
  for (void*& buffer : out.buffers) buffer = pointers.next();
  out.slopes = next_as<float>(pointers), out.gradients = next_as<float>(pointers);
  out.partial = next_as<float>(pointers), out.total = pointers.next();
  run.slots = next_as<float>(pointers), run.counter = next_as<int>(pointers);
  read_backward(out, numbers);
  Launch launch;
  int of_x = -1, of_skip = -1;
  run_backward<OPERAND, CHANNELS>(run, out, launch, of_x, of_skip);
  auto* answer = next_as<int64_t>(pointers);
  answer[0] = launch.count, answer[1] = of_x, answer[2] = of_skip;
  return launch.failed;
}

// numbers, table; returns the length of the table, of which it writes no more than `room` numbers.
extern "C" int64_t count(const int64_t* numbers, int backward, int64_t* table, int64_t room) {
  const auto counted = count_launches<OPERAND, CHANNELS>(numbers, backward != 0);
  std::copy_n(counted.begin(), std::min<int64_t>(counted.size(), room), table);
  return counted.size();
}
