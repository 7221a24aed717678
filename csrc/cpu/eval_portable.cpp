// The kernels of stage_eval for any processor: registers of 4 floats.
#include "eval_includes.h"

#define PATHNET_EVAL_KERNELS kEvalPortable
#define PATHNET_EVAL_PRODUCTS Float32Products
#define PATHNET_LANES 4
#include "eval_kernels.h"
