// The passes of a training step for any processor: registers of 4 floats.
#define PATHNET_LANES 4
#define PATHNET_TABLE kPortableTrainKernels
#include "train_passes.h"
