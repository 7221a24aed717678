// The eight tile registers of AMX and its product of bf16 tiles. Written as assembler: the numbers
// of registers in GCC's intrinsics must be literals, and stores to memory may move past its loads
// of tiles.
#pragma once
#include "simd.h"

namespace pathnet {
namespace {

// Rows, and bytes of a row, that each register is to hold.
struct AmxShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Shapes the registers of this thread for as long as it lives.
class AmxSession {
 public:
  explicit AmxSession(const AmxShapes& shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes)); }
  ~AmxSession() { asm volatile("tilerelease"); }
  AmxSession(const AmxSession&) = delete;
  AmxSession& operator=(const AmxSession&) = delete;
};

template <int kRegister>
PATHNET_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kRegister));
}

template <int kRegister>
PATHNET_INLINE void tile_load(const void* from, int64_t row_stride) {  // in bytes
  asm volatile("tileloadd (%0,%1), %%tmm%c2"
               :
               : "r"(from), "r"(row_stride), "i"(kRegister)
               : "memory");
}

template <int kRegister>
PATHNET_INLINE void tile_store(void* to, int64_t row_stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1)"
               :
               : "r"(to), "r"(row_stride), "i"(kRegister)
               : "memory");
}

// sum += a b; a row of b holds two numbers a column, for two columns of a.
template <int kSum, int kA, int kB>
PATHNET_INLINE void tile_multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

}  // namespace
}  // namespace pathnet
