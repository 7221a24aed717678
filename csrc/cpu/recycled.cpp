#include "recycled.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#if defined(__GNUC__) && defined(__linux__)
// Of torch 2.11 and later (torch/csrc/stable/c/shim.h): null where an older one runs.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t dimensions, const int64_t* sizes, const int64_t* strides,
    int64_t storage_offset, int32_t dtype, int32_t device_type, int32_t device_index,
    AtenTensorHandle* result, int32_t layout, const uint8_t* opaque_metadata,
    int64_t opaque_metadata_size, void (*deleter)(void* data, void* context), void* context);
#define PATHNET_RECYCLES 1
#endif

namespace pathnet {
namespace {

#if PATHNET_RECYCLES

constexpr size_t kLargePage = size_t{1} << 21;
constexpr size_t kPage = size_t{1} << 12;
constexpr size_t kSmallest = size_t{1} << 16;  // smaller tensors are the allocator's business
constexpr size_t kMostKept = size_t{1} << 30;

// Pieces of memory that wait for their next use. Whoever finds the lock taken goes to the system:
// nobody waits, nor does a child that was forked while a thread held it.
class Pieces {
 public:
  void* take(size_t bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return nullptr;
    std::vector<void*>& waiting = waiting_[bytes];
    if (waiting.empty()) {
      if (kept_ + bytes > kMostKept) release();
      return nullptr;
    }
    void* piece = waiting.back();
    waiting.pop_back();
    kept_ -= bytes;
    return piece;
  }

  void give_back(void* piece, size_t bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || kept_ + bytes > kMostKept) return std::free(piece);
    waiting_[bytes].push_back(piece);
    kept_ += bytes;
  }

 private:
  void release() {
    for (auto& [bytes, waiting] : waiting_) {
      for (void* piece : waiting) std::free(piece);
      waiting.clear();
    }
    kept_ = 0;
  }

  std::mutex mutex_;
  std::map<size_t, std::vector<void*>> waiting_;
  size_t kept_ = 0;
};

Pieces& pieces() {
  static auto* const pieces = new Pieces;  // never destroyed: tensors may outlive every static
  return *pieces;
}

size_t page_for(size_t bytes) { return bytes < kLargePage ? kPage : kLargePage; }

void* new_piece(size_t bytes) {
  const size_t page = page_for(bytes);
  void* piece = std::aligned_alloc(page, bytes);
  // refused where the system has no large pages, which is no error
  if (piece != nullptr && page == kLargePage) madvise(piece, bytes, MADV_HUGEPAGE);
  return piece;
}

void give_back(void* piece, void* bytes) {
  pieces().give_back(piece, reinterpret_cast<size_t>(bytes));
}

std::vector<int64_t> strides_of(torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                torch::headeronly::MemoryFormat format) {
  if (format == torch::headeronly::MemoryFormat::ChannelsLast)
    return {sizes[1] * sizes[2] * sizes[3], 1, sizes[1] * sizes[3], sizes[1]};
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size() - 1; d > 0; --d) strides[d - 1] = strides[d] * sizes[d];
  return strides;
}

#endif

}  // namespace

Tensor allocate_recycled(torch::headeronly::IntHeaderOnlyArrayRef sizes, const std::string& name,
                         torch::headeronly::MemoryFormat format) {
#if PATHNET_RECYCLES
  size_t floats = 1;
  for (const int64_t size : sizes) floats *= static_cast<size_t>(size);
  if (torch_from_blob == nullptr || floats * sizeof(float) < kSmallest)
    return allocate(sizes, name, format);
  const size_t page = page_for(floats * sizeof(float));
  const size_t bytes = (floats * sizeof(float) + page - 1) & ~(page - 1);
  void* piece = pieces().take(bytes);
  if (piece == nullptr) piece = new_piece(bytes);
  if (piece == nullptr) return allocate(sizes, name, format);  // says why not

  const std::vector<int64_t> strides = strides_of(sizes, format);
  AtenTensorHandle tensor;
  const AOTITorchError error = torch_from_blob(
      piece, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0,
      aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), -1, &tensor,
      aoti_torch_layout_strided(), nullptr, 0, give_back, reinterpret_cast<void*>(bytes));
  if (error != AOTI_TORCH_SUCCESS) {
    std::free(piece);
    throw std::runtime_error(name + ": torch did not take the memory of a tensor.");
  }
  return Tensor(tensor);
#else
  return allocate(sizes, name, format);
#endif
}

}  // namespace pathnet
