// The convolution kernels for AVX2 with FMA: 16 registers of 8 floats.
#include <utility>

#include "conv.h"  // before the pragma: its inline functions are shared with the other files

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define PATHNET_KERNELS kAvx2Kernels
#define PATHNET_INSTRUCTIONS "AVX2"
#define PATHNET_LANES 8
#define PATHNET_PIXELS 6
#define PATHNET_WIDE_PIXELS 0
#include "conv_kernels.h"
#endif
