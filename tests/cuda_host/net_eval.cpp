// net_eval on the host; ops.py calls it, with arrays and numbers in this order.
#include "launch.h"
#include "net_eval_forms.cuh"

using namespace pathnet;

extern "C" int net_eval(const void* images, const unsigned char* weights, const int* first_slice,
                        const float* vectors, const float* classifier, const int8_t* gates,
                        const int* order, const float* scales, void* logits, const int64_t* n) {
  NetEvalPlan plan{images,  {n[0], n[1], n[2], n[3]},
                   weights, first_slice,
                   vectors, classifier,
                   gates,   order,
                   scales,  logits,
                   n[4],    n[5]};
  plan.channels = n[6], plan.height = n[7], plan.width = n[8], plan.classes = n[9];
  for (int i = 0; i < 3; ++i) plan.stage_blocks[i] = n[10 + i];
  plan.pad_before[0] = n[14], plan.pad_before[1] = n[15];
  const bool projects = n[13] > 0, preact = n[16];
  const int64_t rows = n[17], shared_bytes = n[18], width = n[19];
  int failed = 1;
  with_form(width, plan.height, plan.width, [&](auto form) {
    using F = decltype(form);
    NetEval<OPERAND, false, F::kWidth, F::kTiles>::count_shortcut_slices(plan, projects);
    const auto kernel = preact ? net_eval_kernel<OPERAND, true, F::kWidth, F::kTiles>
                               : net_eval_kernel<OPERAND, false, F::kWidth, F::kTiles>;
    failed = simt::launch_kernel(kernel, rows, kThreads, shared_bytes, plan);
  });
  return failed;
}
