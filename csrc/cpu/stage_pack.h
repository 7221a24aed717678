#pragma once
#include "stage_plan.h"

namespace pathnet {

// Folds the batch norms of every block that runs into scales and shifts of channels.
void fold_norms(Plan& plan);

// Packs the weights of every block that runs, on all threads.
void pack_weights(Plan& plan);

// Packs the weights of one convolution.
void pack(const EvalKernels& kernels, const Conv& conv, float* packed);

}  // namespace pathnet
