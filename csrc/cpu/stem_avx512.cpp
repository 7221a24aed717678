// The passes over a stem for AVX-512: 32 registers of 16 floats.
#include <algorithm>

#include "stem_kernels.h"  // before the pragma: inline functions that are shared with other files

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,avx512f,avx512vl,avx512bw,avx512dq")
#define PATHNET_LANES 16
#define PATHNET_TABLE kAvx512StemKernels
#include "stem_passes.h"
#endif
