#include "conv.h"

#include "isa.h"

namespace pathnet {
namespace {

const Kernels& choose() {
#if defined(__x86_64__)
  if (isa() == Isa::kAvx512) return kAvx512Kernels;
  if (isa() == Isa::kAvx2) return kAvx2Kernels;
#endif
  return kPortableKernels;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace pathnet
