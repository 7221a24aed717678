#pragma once
// Argument checks. Every message names the operator, the argument, the rule and the value.
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <sstream>
#include <string>

namespace pathnet {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string to_string(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << ']';
  return text.str();
}

// A dense CPU tensor of this dtype; `name` says which argument of which operator it is.
inline void check_cpu(const Tensor& tensor, ScalarType dtype, const std::string& name) {
  STD_TORCH_CHECK(tensor.defined(), name, " must be a tensor, but it is undefined.");
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must be a CPU tensor: move it with .cpu().");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " must have dtype ", torch::headeronly::toString(dtype),
                  ", but it has ", torch::headeronly::toString(tensor.scalar_type()), '.');
}

inline void check_shape(const Tensor& tensor, std::initializer_list<int64_t> shape, const std::string& name) {
  const torch::headeronly::IntHeaderOnlyArrayRef wanted(shape.begin(), shape.size());
  const bool equal = tensor.dim() == static_cast<int64_t>(shape.size()) &&
                     std::equal(shape.begin(), shape.end(), tensor.sizes().data());
  STD_TORCH_CHECK(equal, name, " must have shape ", to_string(wanted), ", but it has ", to_string(tensor.sizes()), '.');
}

}  // namespace pathnet
