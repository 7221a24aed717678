#include "stem_kernels.h"

#include "isa.h"

namespace pathnet {

const StemKernels& stem_kernels() {
  switch (isa()) {
#if defined(__x86_64__)
    case Isa::kAvx512:
      return kAvx512StemKernels;
    case Isa::kAvx2:
      return kAvx2StemKernels;
#endif
    default:
      return kPortableStemKernels;
  }
}

}  // namespace pathnet
