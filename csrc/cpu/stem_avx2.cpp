// The passes over a stem for AVX2 with FMA: 16 registers of 8 floats.
#include <algorithm>

#include "stem_kernels.h"  // before the pragma: inline functions that are shared with other files

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma")
#define PATHNET_LANES 8
#define PATHNET_TABLE kAvx2StemKernels
#include "stem_passes.h"
#endif
