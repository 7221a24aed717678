// The kernels of stage_eval for AVX2 with FMA: 16 registers of 8 floats.
#include "eval_includes.h"  // before the pragma: what they define is shared with other files

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define PATHNET_EVAL_KERNELS kEvalAvx2
#define PATHNET_EVAL_PRODUCTS Float32Products
#define PATHNET_LANES 8
#include "eval_kernels.h"
#endif
