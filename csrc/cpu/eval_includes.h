#pragma once
// All that the kernels of stage_eval share with code for other instruction sets. It is read before
// the instructions are chosen, so that no inline function of these is compiled for them.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "eval.h"
