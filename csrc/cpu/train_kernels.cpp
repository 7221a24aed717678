#include "train_kernels.h"

#include "isa.h"

namespace pathnet {

const TrainKernels& train_kernels() {
  switch (isa()) {
#if defined(__x86_64__)
    case Isa::kAvx512:
      return kAvx512TrainKernels;
    case Isa::kAvx2:
      return kAvx2TrainKernels;
#endif
    default:
      return kPortableTrainKernels;
  }
}

}  // namespace pathnet
