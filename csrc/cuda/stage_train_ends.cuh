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
  const int lane = Warps<C>::lane();
  const int64_t step = static_cast<int64_t>(gridDim.x) * Warps<C>::kDown * 8;
  for (int64_t pixel =
           (static_cast<int64_t>(blockIdx.x) * Warps<C>::kDown + Warps<C>::down()) * 8 + lane / 4;
       pixel < plan.pixels; pixel += step) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int64_t at = pixel * C + Warps<C>::first_channel(j);
      const auto pair =
          *reinterpret_cast<const typename Op::Pair*>(static_cast<const Element*>(plan.g) + at);
      const float2 g = Op::unpack(pair);
      epilogue.store(pixel, j, g.x, g.y, static_cast<const Element*>(plan.epilogue.u) + at, sums);
    }
  }
  epilogue.add(sums);
  epilogue.finish(plan.pixels);
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
