#pragma once
// Argument checks, and memory. Every message names the operator, the argument, the rule and the
// value.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

namespace pathnet {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Raises ValueError in Python with the parts put together, and nothing else (STD_TORCH_CHECK adds
// file and line).
template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

inline std::string to_string(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << ']';
  return text.str();
}

// A dense CPU tensor of this dtype; `name` says which argument of which operator it is, and is
// written out only where something is wrong.
template <typename Name>
void check_cpu(const Tensor& tensor, ScalarType dtype, const Name& name) {
  check(tensor.defined(), name, " must be a tensor, but it is undefined.");
  check(tensor.is_cpu(), name, " must be a CPU tensor: move it with .cpu().");
  check(tensor.scalar_type() == dtype, name, " must have dtype ",
        torch::headeronly::toString(dtype), ", but it has ",
        torch::headeronly::toString(tensor.scalar_type()), '.');
}

template <typename Name>
void check_shape(const Tensor& tensor, std::initializer_list<int64_t> shape, const Name& name) {
  const torch::headeronly::IntHeaderOnlyArrayRef wanted(shape.begin(), shape.size());
  const bool equal = tensor.dim() == static_cast<int64_t>(shape.size()) &&
                     std::equal(shape.begin(), shape.end(), tensor.sizes().data());
  if (equal) return;  // before the texts are made: most shapes are right
  check(false, name, " must have shape ", to_string(wanted), ", but it has ",
        to_string(tensor.sizes()), '.');
}

// A new float tensor on the CPU; `name` says what it is for.
inline Tensor allocate(
    torch::headeronly::IntHeaderOnlyArrayRef sizes, const std::string& name,
    torch::headeronly::MemoryFormat format = torch::headeronly::MemoryFormat::Contiguous) {
  try {
    return torch::stable::empty(sizes, ScalarType::Float, std::nullopt, std::nullopt, std::nullopt,
                                format);
  } catch (const std::runtime_error&) {  // it says no more than that a call failed
    throw std::runtime_error(name + " of shape " + to_string(sizes) +
                             " does not fit into memory. Use fewer or smaller images.");
  }
}

}  // namespace pathnet
