#include "conv.h"

#include <cstdlib>
#include <string_view>

namespace pathnet {
namespace {

const Kernels& choose() {
#if defined(__x86_64__)
  const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view limit = variable == nullptr ? "" : variable;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512 && limit != "avx2" && limit != "default") return kAvx512Kernels;
  if (avx2 && limit != "default") return kAvx2Kernels;
#endif
  return kPortableKernels;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace pathnet
