#pragma once
// The instruction set of the CPU kernels: the best that this processor has, or the one that
// PATHNET_CPU_ISA asks for.
#include <string>

namespace pathnet {

// The slowest first: each processor has all up to one. The last two multiply bf16, too.
enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx };

const char* to_string(Isa isa);  // as the variable has it

Isa best_isa();

// The set that `asked`, a value of PATHNET_CPU_ISA, names; `best` if it is null or empty. Throws
// std::invalid_argument where there is none of that name or it is beyond `best`.
Isa pick_isa(const char* asked, Isa best);

// The set of this process. The variable is read in the first call, when the extension is loaded;
// throws as pick_isa does.
Isa full_isa();

// The set that its float32 kernels use: at most kAvx512.
Isa isa();

// Why it is that one; completes "chosen as ...".
std::string why_isa();

}  // namespace pathnet
