// The passes over a stem for any processor: registers of 4 floats.
#define PATHNET_LANES 4
#define PATHNET_TABLE kPortableStemKernels
#include "stem_passes.h"
