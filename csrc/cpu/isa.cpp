#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pathnet {
namespace {

constexpr Isa kIsas[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAmx};

// Linux gives a process the registers of AMX on request: Documentation/arch/x86/xstate.rst.
bool may_use_amx() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// The values of the variable up to `best`, as in "portable, avx2 or avx512".
std::string choices(Isa best) {
  std::string text;
  for (const Isa isa : kIsas) {
    if (isa > best) break;
    text += isa == Isa::kPortable ? "" : isa == best ? " or " : ", ";
    text += to_string(isa);
  }
  return text;
}

struct Choice {
  Isa isa;
  bool asked_for;
};

const Choice& choice() {
  static const Choice chosen = [] {
    const char* asked = std::getenv("PATHNET_CPU_ISA");
    return Choice{pick_isa(asked, best_isa()), asked != nullptr && *asked != '\0'};
  }();
  return chosen;
}

}  // namespace

const char* to_string(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAmx:
      return "amx";
  }
  return "unknown";
}

Isa best_isa() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kPortable;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!avx512) return Isa::kAvx2;
  if (!__builtin_cpu_supports("avx512bf16")) return Isa::kAvx512;
  const bool amx = __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16");
  return amx && may_use_amx() ? Isa::kAmx : Isa::kAvx512Bf16;
#else
  return Isa::kPortable;
#endif
}

Isa pick_isa(const char* asked, Isa best) {
  const std::string name = asked == nullptr ? "" : asked;
  if (name.empty()) return best;
  const auto found = std::find_if(std::begin(kIsas), std::end(kIsas),
                                  [&](Isa isa) { return name == to_string(isa); });
  if (found == std::end(kIsas))
    throw std::invalid_argument("PATHNET_CPU_ISA must be " + choices(Isa::kAmx) + ", but it is '" +
                                name + "'. Set it to " + choices(best) +
                                ", or unset it for the best of this processor.");
  if (*found > best)
    throw std::invalid_argument("PATHNET_CPU_ISA must name instructions that this processor has (" +
                                choices(best) + "), but it is '" + name +
                                "'. Set it to one of these, or unset it.");
  return *found;
}

Isa full_isa() { return choice().isa; }

Isa isa() { return std::min(full_isa(), Isa::kAvx512); }

std::string why_isa() {
  const std::string best = to_string(best_isa());
  return choice().asked_for ? "asked for by PATHNET_CPU_ISA (this processor's best: " + best + ")"
                            : "this processor's best";
}

}  // namespace pathnet
