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

}  // namespace pathnet
