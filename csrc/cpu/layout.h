#pragma once
#include <algorithm>

#include "../check.h"
#include "eval.h"

namespace pathnet {

// The rule of Tensor.suggest_memory_format for four dimensions.
inline torch::headeronly::MemoryFormat memory_format_of(const Tensor& x) {
  constexpr auto kContiguous = torch::headeronly::MemoryFormat::Contiguous;
  int64_t least = 0;
  if (x.stride(1) == 0) return kContiguous;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (x.size(d) == 0 || x.stride(d) < least) return kContiguous;
    if (d == 0 && least == x.stride(1)) return kContiguous;  // [N, 1, 1, 1] and the like
    least = x.stride(d) * std::max<int64_t>(x.size(d), 1);
  }
  return torch::headeronly::MemoryFormat::ChannelsLast;
}

// Image n of a tensor [N, C, H, W].
template <typename T>
View<T> view(T* data, const Tensor& x, int64_t n) {
  return {data + n * x.stride(0), x.size(1), x.stride(1), x.stride(2), x.stride(3)};
}

}  // namespace pathnet
