#pragma once
// A run of FORWARD blocks: what each block adds to the stream, one bit an element for the whole
// run, and the backward, which is that bit. With per-sample gates a table of rows names the images
// that run a block (docs/forward-run.md).
#include "eight.cuh"

namespace pathnet {

struct ForwardRunPlan {
  const void* x;        // [N, elements]: the shortcut
  const void* f;        // [count, elements]: the residual functions of the rows that run
  void* y;              // [N, elements]; may be x: rows that do not run are not touched
  uint8_t* bits;        // [N, elements / 8], bit i % 8 of byte i / 8
  const int* rows;      // [count]: the image of each row of f; null: row r is image r
  const float* scales;  // [count]: s; null: 1
  int64_t count, elements;
  bool first;  // block of the run: bits are written; else they are ANDed
};

// y = relu(x + s f), bits &= [y > 0]; a thread for 8 elements, a line of thread blocks for each
// row.
template <class Op>
__global__ void __launch_bounds__(kRunThreads)
    forward_run_merge_kernel(const __grid_constant__ ForwardRunPlan plan) {
  using Element = typename Op::Element;
  const int64_t byte = static_cast<int64_t>(blockIdx.x) * kRunThreads + threadIdx.x,
                bytes = plan.elements / kEach;
  if (byte >= bytes) return;
  for (int64_t r = blockIdx.y; r < plan.count; r += gridDim.y) {
    const int64_t row = plan.rows == nullptr ? r : __ldg(plan.rows + r);
    const float s = plan.scales == nullptr ? 1.f : __ldg(plan.scales + r);
    const int64_t place = row * plan.elements + byte * kEach;
    Eight<Op> x, f;
    x.load(static_cast<const Element*>(plan.x) + place);
    f.load(static_cast<const Element*>(plan.f) + r * plan.elements + byte * kEach);
    unsigned alive = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const float y = relu(fmaf(s, Op::load(f.at + i), Op::load(x.at + i)));
      alive |= (y > 0.f) << i;
      Op::store(x.at + i, y);
    }
    x.store(static_cast<Element*>(plan.y) + place);
    uint8_t* bits = plan.bits + row * bytes + byte;
    *bits = plan.first ? alive : alive & *bits;
  }
}

// grad_x = grad_y where the run's bit is set, else 0; `bytes` of bits, 8 elements each.
template <class Op>
__global__ void __launch_bounds__(kRunThreads)
    forward_run_backward_kernel(const typename Op::Element* grad_y, const uint8_t* bits,
                                typename Op::Element* grad_x, int64_t bytes) {
  const int64_t byte = static_cast<int64_t>(blockIdx.x) * kRunThreads + threadIdx.x;
  if (byte >= bytes) return;
  Eight<Op> grad;
  grad.load(grad_y + byte * kEach);
  const unsigned alive = bits[byte];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if ((alive >> i & 1) == 0) grad.at[i] = 0;
  }
  grad.store(grad_x + byte * kEach);
}

// For each block the images whose gate is not OFF, in order, then -1: rows [blocks, N], counts
// [blocks] of gates [N, blocks]. A thread block for each block of the net.
__global__ void __launch_bounds__(kRunThreads)
    row_tables_kernel(const int8_t* gates, int* rows, int* counts, int images, int blocks) {
  int* on_in_warp = reinterpret_cast<int*>(dynamic_shared());  // [kRunThreads / 32]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int* table = rows + static_cast<int64_t>(blockIdx.x) * images;
  int found = 0;
  for (int start = 0; start < images; start += kRunThreads) {
    const int image = start + threadIdx.x;
    const bool on = image < images && gates[static_cast<int64_t>(image) * blocks + blockIdx.x] != 0;
    const unsigned of_warp = __ballot_sync(~0u, on);
    if (lane == 0) on_in_warp[warp] = __popc(of_warp);
    __syncthreads();
    int before = found;
    for (int w = 0; w < kRunThreads / 32; ++w) {
      if (w == warp && on) table[before + __popc(of_warp & ((1u << lane) - 1))] = image;
      before += on_in_warp[w];
    }
    found = before;
    __syncthreads();  // the counts have been read
  }
  for (int i = found + threadIdx.x; i < images; i += kRunThreads) table[i] = -1;
  if (threadIdx.x == 0) counts[blockIdx.x] = found;
}

}  // namespace pathnet
