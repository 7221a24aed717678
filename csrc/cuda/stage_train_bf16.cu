// stage_train for bfloat16: its kernels. Compiled here and executed on the host; they have not been
// run on a GPU yet.
#include "stage_train_launch.h"

namespace pathnet::train {
PATHNET_STAGE_TRAIN(, Bf16)
}  // namespace pathnet::train
