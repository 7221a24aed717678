#pragma once
// Memory for values of a batch that stays with the process when its tensor goes.
//
// A training step keeps hundreds of MiB from its forward for its backward. Returned to the system
// and asked for again, each page of it would be cleared and faulted in anew every step, which takes
// longer than some passes do.
#include "../check.h"

namespace pathnet {

// A new float tensor in recycled memory; `name` says what it is for. At most 1 GiB waits for its
// next use; the rest goes back to the system. Before torch 2.11, which lets no tensor own foreign
// memory, this is an ordinary allocation. The format is Contiguous or ChannelsLast.
Tensor allocate_recycled(
    torch::headeronly::IntHeaderOnlyArrayRef sizes, const std::string& name,
    torch::headeronly::MemoryFormat format = torch::headeronly::MemoryFormat::Contiguous);

}  // namespace pathnet
