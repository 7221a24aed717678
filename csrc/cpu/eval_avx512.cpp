// The kernels of stage_eval for AVX-512: 32 registers of 16 floats.
#include "eval_includes.h"  // before the pragma: what they define is shared with other files

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#define PATHNET_EVAL_KERNELS kEvalAvx512
#define PATHNET_EVAL_PRODUCTS Float32Products
#define PATHNET_LANES 16
#include "eval_kernels.h"
#endif
