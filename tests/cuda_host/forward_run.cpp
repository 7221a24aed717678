// The kernels of forward_run.cuh on the host; tests/test_forward_run_cuda.py calls them, with
// arrays and numbers in this order.
#include "forward_run.cuh"

using namespace pathnet;

static unsigned lines(int64_t bytes) {
  return static_cast<unsigned>((bytes + kRunThreads - 1) / kRunThreads);
}

// n: count, elements, first, thread blocks down
extern "C" int merge(const void* x, const void* f, const int* rows, const float* scales, void* y,
                     uint8_t* bits, const int64_t* n) {
  const ForwardRunPlan plan{x, f, y, bits, rows, scales, n[0], n[1], n[2] != 0};
  return simt::launch(dim3(lines(n[1] / kEach), n[3]), dim3(kRunThreads), 0,
                      [=] { forward_run_merge_kernel<OPERAND>(plan); });
}

extern "C" int backward(const OPERAND::Element* grad_y, const uint8_t* bits,
                        OPERAND::Element* grad_x, const int64_t* n) {
  const int64_t bytes = n[0];
  return simt::launch(dim3(lines(bytes)), dim3(kRunThreads), 0,
                      [=] { forward_run_backward_kernel<OPERAND>(grad_y, bits, grad_x, bytes); });
}

extern "C" int row_tables(const int8_t* gates, int* rows, int* counts, const int64_t* n) {
  const int images = n[0], blocks = n[1];
  return simt::launch(dim3(blocks), dim3(kRunThreads), kRunThreads / 32 * sizeof(int),
                      [=] { row_tables_kernel(gates, rows, counts, images, blocks); });
}
