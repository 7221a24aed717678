// The kernels of stage_eval for AVX512-BF16: 3x3 convolutions with products in bf16, the rest by
// AVX-512.
#include "eval_includes.h"  // before the pragma: what they define is shared with other files

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#define PATHNET_EVAL_KERNELS kEvalAvx512Bf16
#define PATHNET_EVAL_PRODUCTS Bf16Products<Avx512Bf16>
#define PATHNET_LANES 16
#include "convolve_bf16.h"
#include "eval_kernels.h"
#endif
