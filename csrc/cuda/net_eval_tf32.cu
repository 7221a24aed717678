// net_eval for float32: its kernels. Compiled here and executed on the host; they have not been run
// on a GPU yet.
#include "net_eval_launch.h"

namespace pathnet {
PATHNET_NET_EVAL(, Tf32)
}  // namespace pathnet
