// The convolution kernels for AVX-512: 32 registers of 16 floats.
#include <utility>

#include "conv.h"  // before the pragma: its inline functions are shared with the other files

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,avx512f,avx512vl")
#define PATHNET_KERNELS kAvx512Kernels
#define PATHNET_INSTRUCTIONS "AVX-512"
#define PATHNET_LANES 16
#define PATHNET_PIXELS 12  // more pixels need more addresses than there are registers
#define PATHNET_WIDE_PIXELS 8
#include "conv_kernels.h"
#endif
