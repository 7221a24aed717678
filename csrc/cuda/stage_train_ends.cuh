#pragma once
// stage_train: the two ends of a run, and the sum of its weight gradients.
#include "stage_train_epilogue.cuh"
#include "stage_train_fwd.cuh"

namespace pathnet::train {

struct MergePlan {
  const void *x, *u;
  const float* state;
  void* merged;
  uint8_t* bits;
  Bits join;
  int64_t pixels;
  int channels;
};

// The value that a run puts out, relu(scale u + shift + x), and its mask; eight elements a thread.
template <class Op>
__global__ void __launch_bounds__(kRunThreads)
    stage_train_merge_kernel(const __grid_constant__ MergePlan plan) {
  using Element = typename Op::Element;
  const int64_t eight = static_cast<int64_t>(blockIdx.x) * kRunThreads + threadIdx.x;
  if (eight >= plan.pixels * plan.channels / kEach) return;
  Eight<Op> x, u;
  x.load(static_cast<const Element*>(plan.x) + eight * kEach);
  u.load(static_cast<const Element*>(plan.u) + eight * kEach);
  const float* scale = plan.state + kScale * plan.channels + eight * kEach % plan.channels;
  const float* shift = scale + plan.channels;
  unsigned alive = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const float y =
        relu(fmaf(__ldg(scale + i), Op::load(u.at + i), __ldg(shift + i)) + Op::load(x.at + i));
    alive |= (y > 0.f) << i;
    Op::store(x.at + i, y);
  }
  x.store(static_cast<Element*>(plan.merged) + eight * kEach);
  store_bits(plan.bits + eight, alive, plan.join);
}

// Calls visit(pixel, j) for the pairs of channels from first_channel(j) on that this thread has of
// a stream.
template <int C, class Visit>
__device__ __forceinline__ void for_each_pair_of_stream(int64_t pixels, Visit visit) {
  constexpr int kDown = Warps<C>::kDown;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kDown * 8;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kDown + Warps<C>::down();
  for (int64_t pixel = group * 8 + Warps<C>::lane() / 4; pixel < pixels; pixel += step) {
#pragma unroll
    for (int j = 0; j < 2; ++j) visit(pixel, j);
  }
}

template <class Op>
__device__ __forceinline__ float2 load_pair(const void* from, int64_t at) {
  const auto* element = static_cast<const typename Op::Element*>(from) + at;
  return Op::unpack(*reinterpret_cast<const typename Op::Pair*>(element));
}

struct FirstNormPlan {
  const void* x;
  int64_t pixels;
  NormPlan norm;
  float* state;
  float* slots;
  int* counter;
};

// The state of the norm that a run of pre-activation blocks begins with: nobody has formed the
// statistics of x.
template <class Op, int C>
__global__ void __launch_bounds__(Warps<C>::kThreads)
    stage_train_first_norm_kernel(const __grid_constant__ FirstNormPlan plan) {
  NormSums<C> sums;
  if (plan.norm.batch_stats) {
    for_each_pair_of_stream<C>(plan.pixels, [&](int64_t pixel, int j) {
      sums.add(j, load_pair<Op>(plan.x, pixel * C + Warps<C>::first_channel(j)));
    });
  }
  sums.finish(plan.norm, plan.state, dynamic_shared(), plan.slots, plan.counter);
}

struct ArrivePlan {
  const void* g;
  int64_t pixels;
  EpiloguePlan epilogue;
};

// The gradient that comes to a run, behind its last ReLUs, with the sums of its last norm.
template <class Op, int C>
__global__ void __launch_bounds__(Warps<C>::kThreads)
    stage_train_arrive_kernel(const __grid_constant__ ArrivePlan plan) {
  using Element = typename Op::Element;
  const Epilogue<Op, C> epilogue(plan.epilogue, dynamic_shared());
  GradientSums sums[4] = {};
  __syncthreads();
  for_each_pair_of_stream<C>(plan.pixels, [&](int64_t pixel, int j) {
    const int64_t at = pixel * C + Warps<C>::first_channel(j);
    const float2 g = load_pair<Op>(plan.g, at);
    const auto* u = static_cast<const Element*>(plan.epilogue.u) + at;
    epilogue.store(pixel, j, g.x, g.y, u, nullptr, sums);
  });
  epilogue.add(sums);
  epilogue.finish(plan.pixels);
}

struct DepartPlan {
  const void *g, *u;            // the gradient behind a norm, and what that reads; null: g departs
  const float *state, *slopes;  // of the norm
  const void* next;             // the gradient that joins behind it; null: none
  void* to;
  int64_t pixels;
  int channels;
};

// The gradient that leaves a run of pre-activation blocks; eight elements a thread.
template <class Op>
__global__ void __launch_bounds__(kRunThreads)
    stage_train_depart_kernel(const __grid_constant__ DepartPlan plan) {
  using Element = typename Op::Element;
  const int64_t eight = static_cast<int64_t>(blockIdx.x) * kRunThreads + threadIdx.x;
  if (eight >= plan.pixels * plan.channels / kEach) return;
  Eight<Op> g, u, next{};
  g.load(static_cast<const Element*>(plan.g) + eight * kEach);
  if (plan.next != nullptr) next.load(static_cast<const Element*>(plan.next) + eight * kEach);
  if (plan.u != nullptr) {
    u.load(static_cast<const Element*>(plan.u) + eight * kEach);
    const int first = eight * kEach % plan.channels;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const auto of_norm = [&](int row) {
        return __ldg(plan.state + row * plan.channels + first + i);
      };
      const auto slope = [&](int row) {
        return __ldg(plan.slopes + row * plan.channels + first + i);
      };
      const float rest = fmaf(Op::load(u.at + i) - of_norm(kMean), slope(0), slope(1));
      const float behind = fmaf(Op::load(g.at + i), of_norm(kScale), rest);
      Op::store(g.at + i, behind + Op::load(next.at + i));
    }
  }
  g.store(static_cast<Element*>(plan.to) + eight * kEach);
}

struct SumPlan {
  const float* partial;
  void* total;
  int slots;
  int64_t size;
};

// total [size] = the sum of partial [slots, size], in the order of the slots.
template <class Op>
__global__ void __launch_bounds__(kRunThreads)
    stage_train_sum_kernel(const __grid_constant__ SumPlan plan) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kRunThreads + threadIdx.x;
  if (at >= plan.size) return;
  float sum = 0.f;
  for (int slot = 0; slot < plan.slots; ++slot) sum += __ldg(plan.partial + slot * plan.size + at);
  Op::store(static_cast<typename Op::Element*>(plan.total) + at, sum);
}

}  // namespace pathnet::train
