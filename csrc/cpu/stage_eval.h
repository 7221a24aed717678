#pragma once
#include "stage_plan.h"

namespace pathnet {

// x through the blocks of the plan, whose kernels and bits are chosen.
Tensor evaluate(Plan& plan, const Switches& switches, const Tensor& x);

}  // namespace pathnet
