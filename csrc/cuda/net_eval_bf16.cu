// net_eval for bfloat16: its kernels. Compiled here and executed on the host; they have not been
// run on a GPU yet.
#include "net_eval_launch.h"

namespace pathnet {
PATHNET_NET_EVAL(, Bf16)
}  // namespace pathnet
