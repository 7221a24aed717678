#include "eval.h"

#include "isa.h"

namespace pathnet {

const EvalKernels& eval_kernels() {
#if defined(__x86_64__)
  if (isa() == Isa::kAvx512) return kEvalAvx512;
  if (isa() == Isa::kAvx2) return kEvalAvx2;
#endif
  return kEvalPortable;
}

const EvalKernels* bf16_eval_kernels() {
#if defined(__x86_64__)
  if (full_isa() == Isa::kAmx) return &kEvalAmx;
  if (full_isa() == Isa::kAvx512Bf16) return &kEvalAvx512Bf16;
#endif
  return nullptr;
}

}  // namespace pathnet
