// The convolution kernels for any processor: registers of 4 floats, 16 of them (SSE2) or 32 (NEON).
#define PATHNET_KERNELS kPortableKernels
#define PATHNET_INSTRUCTIONS "portable"
#define PATHNET_LANES 4
#if defined(__aarch64__)
#define PATHNET_PIXELS 6
#else
#define PATHNET_PIXELS 3
#endif
#define PATHNET_WIDE_PIXELS 0
#include "conv_kernels.h"
