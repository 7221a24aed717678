#include "stage_train_batch.h"

#include <cstring>

#include "recycled.h"

namespace pathnet::train {

Batch Pool::take(const Extent& extent) {
  auto& free = free_[{extent.height, extent.width, extent.blocks}];
  if (free.empty())
    free.push_back(allocate_recycled({images_, extent.blocks, extent.height, extent.width, kBlock},
                                     std::string(op_) + ": a value of the batch"));
  Batch batch(new Tensor(std::move(free.back())), [&free](Tensor* tensor) {
    free.push_back(std::move(*tensor));
    delete tensor;
  });
  free.pop_back();
  return batch;
}

Batch new_bits(const char* op, int64_t images, const Extent& extent) {
  // two words of bits in each float
  return std::make_shared<Tensor>(allocate({divide_up(images * extent.blocks * extent.pixels(), 2)},
                                           std::string(op) + ": the bits of a batch"));
}

namespace {

// One image of a tensor [N, C, H, W].
struct View {
  float* data;
  int64_t channels, channel, row, column;
  View(const Tensor& x, int64_t image)
      : data(train::data(x) + image * x.stride(0)),
        channels(x.size(1)),
        channel(x.stride(1)),
        row(x.stride(2)),
        column(x.stride(3)) {}
};

// Row by row, so that the 16 channels of a row stay in the first cache whatever the layout.
void block_to_batch(const View& x, const Extent& extent, int64_t block, float* batch) {
  const int64_t first = block * kBlock, count = std::min(kBlock, x.channels - first);
  for (int64_t i = 0; i < extent.height; ++i, batch += extent.width * kBlock) {
    const float* from = x.data + first * x.channel + i * x.row;
    if (x.channel == 1 && count == kBlock) {
      for (int64_t j = 0; j < extent.width; ++j)
        std::memcpy(batch + j * kBlock, from + j * x.column, kBlock * sizeof(float));
      continue;
    }
    if (count < kBlock) std::fill(batch, batch + extent.width * kBlock, 0.0f);
    for (int64_t c = 0; c < count; ++c)
      for (int64_t j = 0; j < extent.width; ++j)
        batch[j * kBlock + c] = from[c * x.channel + j * x.column];
  }
}

void block_from_batch(const float* batch, const Extent& extent, const uint16_t* alive,
                      int64_t block, const View& x) {
  const int64_t first = block * kBlock, count = std::min(kBlock, x.channels - first);
  for (int64_t i = 0; i < extent.height; ++i, batch += extent.width * kBlock) {
    float* to = x.data + first * x.channel + i * x.row;
    if (alive != nullptr) {
      for (int64_t j = 0; j < extent.width; ++j, ++alive)
        for (int64_t c = 0; c < count; ++c)
          to[c * x.channel + j * x.column] = *alive >> c & 1 ? batch[j * kBlock + c] : 0.0f;
      continue;
    }
    if (x.channel == 1 && count == kBlock) {
      for (int64_t j = 0; j < extent.width; ++j)
        std::memcpy(to + j * x.column, batch + j * kBlock, kBlock * sizeof(float));
      continue;
    }
    for (int64_t c = 0; c < count; ++c)
      for (int64_t j = 0; j < extent.width; ++j)
        to[c * x.channel + j * x.column] = batch[j * kBlock + c];
  }
}

// Calls visit(image, block, offset of the block in the batch) for all, in parallel.
template <typename Visit>
void for_blocks(int64_t images, const Extent& extent, const Visit& visit) {
  torch::stable::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t b = 0; b < extent.blocks; ++b)
        visit(n, b, (n * extent.blocks + b) * extent.pixels());
  });
}

}  // namespace

void to_batch(const Tensor& x, const Extent& extent, float* batch) {
  for_blocks(x.size(0), extent, [&](int64_t n, int64_t b, int64_t pixel) {
    block_to_batch(View(x, n), extent, b, batch + pixel * kBlock);
  });
}

void from_batch(const float* batch, const Extent& extent, const uint16_t* alive, const Tensor& x) {
  for_blocks(x.size(0), extent, [&](int64_t n, int64_t b, int64_t pixel) {
    block_from_batch(batch + pixel * kBlock, extent, alive == nullptr ? nullptr : alive + pixel, b,
                     View(x, n));
  });
}

int64_t group_images(const Extent& extent) {
  constexpr int64_t kTiles = 32, kWideBlocks = 8, kMost = 16;
  const int64_t tiles = extent.blocks < kWideBlocks ? kTiles : 2 * kTiles;
  return std::clamp<int64_t>(tiles / tiles_of(extent), 1,
                             extent.blocks < kWideBlocks ? kMost / 2 : kMost);
}

int64_t workspace_floats(const Plan& plan) {
  int64_t most = 0;
  for (const Block& block : plan.blocks)
    for (const Conv& conv : block.convs)
      most = std::max(most, train_kernels().workspace_floats(conv.in, conv.out, conv.kernel,
                                                             conv.stride, group_images(conv.out)));
  return most;
}

int64_t widest(const Plan& plan) {
  int64_t most = 0;
  for (const Block& block : plan.blocks)
    for (const Conv& conv : block.convs)
      most = std::max({most, conv.in.channels(), conv.out.channels()});
  return most;
}

Workers::Workers(const char* op, int64_t floats_each)
    : workers_(torch::stable::get_num_threads()),
      floats_(round_up(floats_each, kBlock)),
      memory_(allocate_recycled({workers_, floats_}, std::string(op) + ": scratch memory")) {}

}  // namespace pathnet::train
