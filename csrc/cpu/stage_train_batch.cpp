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
  int64_t channels, rows, columns;
  int64_t channel, row, column;  // floats from one to the next
  View(const Tensor& x, int64_t image)
      : data(train::data(x) + image * x.stride(0)),
        channels(x.size(1)),
        rows(x.size(2)),
        columns(x.size(3)),
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

// Along the channels where they are dense in both, else along the columns.
void copy_image(const View& from, const View& to) {
  const bool channels_last = from.channel == 1 && to.channel == 1;
  const int64_t outer = channels_last ? from.columns : from.channels;
  const int64_t inner = channels_last ? from.channels : from.columns;
  const auto steps = [&](const View& x) {
    return channels_last ? std::pair(x.column, x.channel) : std::pair(x.channel, x.column);
  };
  const auto [from_outer, from_inner] = steps(from);
  const auto [to_outer, to_inner] = steps(to);
  for (int64_t i = 0; i < from.rows; ++i)
    for (int64_t j = 0; j < outer; ++j) {
      const float* source = from.data + i * from.row + j * from_outer;
      float* target = to.data + i * to.row + j * to_outer;
      for (int64_t k = 0; k < inner; ++k) target[k * to_inner] = source[k * from_inner];
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

void to_batch(const Plan& plan, const Tensor& x, const Extent& extent, float* batch) {
  for_blocks(plan.images, extent, [&](int64_t n, int64_t b, int64_t pixel) {
    block_to_batch(View(x, plan.row(n)), extent, b, batch + pixel * kBlock);
  });
}

void from_batch(const Plan& plan, const float* batch, const Extent& extent, const uint16_t* alive,
                const Tensor& x) {
  for_blocks(plan.images, extent, [&](int64_t n, int64_t b, int64_t pixel) {
    block_from_batch(batch + pixel * kBlock, extent, alive == nullptr ? nullptr : alive + pixel, b,
                     View(x, plan.row(n)));
  });
}

void pass_others(const Plan& plan, const Tensor& from, const Tensor& to) {
  std::vector<int64_t> others;
  for (int64_t row = 0, n = 0; row < from.size(0) && !plan.rows.empty(); ++row)
    n < plan.images&& plan.rows[n] == row ? void(++n) : others.push_back(row);
  torch::stable::parallel_for(0, others.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) copy_image(View(from, others[i]), View(to, others[i]));
  });
}

int64_t group_images(const Extent& extent) {
  constexpr int64_t kTiles = 32, kWideBlocks = 8, kMost = 16;
  const int64_t tiles = extent.blocks < kWideBlocks ? kTiles : 2 * kTiles;
  return std::clamp<int64_t>(tiles / tiles_of(extent), 1,
                             extent.blocks < kWideBlocks ? kMost / 2 : kMost);
}

int64_t workspace_floats(const Plan& plan) {
  return plan.most([](const Conv& conv) {
    return train_kernels().workspace_floats(conv.in, conv.out, conv.kernel, conv.stride,
                                            group_images(conv.out));
  });
}

int64_t widest(const Plan& plan) {
  return plan.most(
      [](const Conv& conv) { return std::max(conv.in.channels(), conv.out.channels()); });
}

Workers::Workers(const char* op, int64_t floats_each)
    : workers_(torch::stable::get_num_threads()),
      floats_(round_up(floats_each, kBlock)),
      memory_(allocate_recycled({workers_, floats_}, std::string(op) + ": scratch memory")) {}

}  // namespace pathnet::train
