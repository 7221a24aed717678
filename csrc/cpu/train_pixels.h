// The passes of 1x1 convolutions over some images: prologue, product and epilogue of a panel of
// pixels, which needs no border and so no image in scratch memory.
#pragma once
#include "panel_ahead.h"
#include "pixels.h"
#include "train_epilogues.h"
#include "train_prologues.h"
#include "weight_gradient.h"

namespace pathnet {
namespace {

// The pixels of an image that a convolution reads: all, or every second one of every second row.
struct Grid {
  Extent extent;
  int64_t stride = 1;

  // Rows of pixels that stand equally far apart: all pixels are one.
  Image rows() const {
    if (stride == 1) return {nullptr, 1, extent.pixels(), extent.blocks};
    return {nullptr, extent.height / stride, extent.width / stride, extent.blocks};
  }
  // Where a run's first pixel stands in a batch, in floats.
  int64_t at(int64_t image, int64_t block, const Run& run) const {
    const int64_t pixel = (run.row * extent.width + run.column) * stride;
    return ((image * extent.blocks + block) * extent.pixels() + pixel) * kBlock;
  }
};

// Pixels of the images from `image` on, counted through, in a panel [blocks, tiles, 16].
struct PixelPanel {
  int64_t image;
  int64_t first, count;  // pixels
  int64_t tiles;         // count, rounded up to what the products take

  // Calls visit(image of the batch, run of the grid).
  template <typename Visit>
  PATHNET_INLINE void for_images(const Grid& grid, const Visit& visit) const {
    for_runs(grid.rows(), first, count, [&](const Run& run) { visit(image + run.image, run); });
  }
};

// Calls visit(panel) for the pixels of `count` images.
template <typename Visit>
PATHNET_INLINE void for_panels(int64_t image, int64_t count, const Extent& in, const Extent& out,
                               const Visit& visit) {
  const int64_t pixels = count * out.pixels(), most = panel_pixels(in.blocks, out.blocks);
  const int64_t multiple = std::max(tile_multiple(in.blocks), tile_multiple(out.blocks));
  for (int64_t first = 0; first < pixels; first += most) {
    const int64_t here = std::min(most, pixels - first);
    visit(PixelPanel{image, first, here, round_up(here, multiple)});
  }
}

template <typename Value>
void fill_panel(const Grid& grid, const PixelPanel& panel, float* to, Value& value) {
  panel.for_images(grid, [&](int64_t image, const Run& run) {
    for (int64_t b = 0; b < grid.extent.blocks; ++b) {
      int64_t at = grid.at(image, b, run);
      float* pixel = to + (b * panel.tiles + run.at) * kBlock;
      value.begin(image, b);
      for (int64_t j = 0; j < run.pixels; ++j, at += grid.stride * kBlock, pixel += kBlock) {
        unsigned alive = 0;
        for (int r = 0; r < kRegisters; ++r) {
          const Vector v = value(r, at + r * kLanes);
          store(pixel + r * kLanes, v);
          if constexpr (Value::kBits) alive |= positive(v) << (r * kLanes);
        }
        if constexpr (Value::kBits) value.keep_alive(at / kBlock, alive);
      }
    }
  });
}

// Hands `rows` <= kTile pixels below one another to an epilogue, as a column of a tile.
template <typename Epilogue, typename State>
PATHNET_INLINE void emit_column(const float* products, int64_t pixel, int64_t rows,
                                const Epilogue& epilogue, State& state) {
  epilogue.move(state, pixel, 0);
#pragma GCC unroll 4
  for (int i = 0; i < kTile; ++i)
    if (i < rows) epilogue.put(state, load(products + i * kBlock), i, 0);
}

template <typename Epilogue>
void emit_panel(const float* products, const PixelPanel& panel, const Extent& extent,
                const Epilogue& epilogue) {
  panel.for_images({extent}, [&](int64_t, const Run& run) {
    for (int64_t b = 0; b < extent.blocks; ++b)
      for (int r = 0; r < kRegisters; ++r) {
        auto state = epilogue.begin(run.image, b, r);
        const float* from = products + (b * panel.tiles + run.at) * kBlock + r * kLanes;
        int64_t j = 0;
        for (; j + kTile <= run.pixels; j += kTile)
          emit_column(from + j * kBlock, run.column + j, kTile, epilogue, state);
        if (j < run.pixels)
          emit_column(from + j * kBlock, run.column + j, run.pixels - j, epilogue, state);
        epilogue.end(state, run.image, b, r);
      }
  });
}

// Adds the products to the pixels of the grid.
inline void add_panel(const float* products, const PixelPanel& panel, const Grid& grid,
                      float* batch) {
  panel.for_images(grid, [&](int64_t image, const Run& run) {
    for (int64_t b = 0; b < grid.extent.blocks; ++b) {
      const float* from = products + (b * panel.tiles + run.at) * kBlock;
      float* to = batch + grid.at(image, b, run);
      for (int64_t j = 0; j < run.pixels; ++j, from += kBlock, to += grid.stride * kBlock)
        for (int r = 0; r < kBlock; r += kLanes) store(to + r, load(to + r) + load(from + r));
    }
  });
}

// Tiles whose products take some thousand cycles, between which memory is called.
template <int kWide>
constexpr int64_t kTilesOfStep = 4 * kTilesOf[kWide];

// Products with kWide blocks of output channels, as multiply_slabs forms them.
template <int kWide>
void multiply_group(const Product& group, int64_t tiles, PanelAhead& ahead) {
  for (int64_t block = 0; block < group.in_blocks; block += kSlab)
    for (int64_t t = 0; t < tiles; t += kTilesOfStep<kWide>) {
      Product p = group;
      p.v += block * p.v_block + t * kBlock, p.m += t * kBlock;
      p.u += block * kBlock * kWide * kBlock;
      p.in_blocks = std::min(kSlab, group.in_blocks - block), p.chain = chain_of(group.in_blocks);
      const int64_t count = std::min(kTilesOfStep<kWide>, tiles - t);
      ahead.step();
      multiply_slab<kWide>(p, count, block == 0);
    }
}

// Products of a panel with packed weights (pack_pixel_weights).
inline void multiply_panel(const float* panel, int64_t in_blocks, const float* weights,
                           float* products, int64_t out_blocks, int64_t tiles, PanelAhead& ahead) {
  Product p{panel, tiles * kBlock, in_blocks, weights, products, tiles * kBlock};
  for (int64_t block = 0; block < out_blocks; block += kWidest) {
    const int wide = static_cast<int>(std::min<int64_t>(kWidest, out_blocks - block));
    if (wide == kWidest) multiply_group<kWidest>(p, tiles, ahead);
#if PATHNET_LANES == 16
    if (wide == 1) multiply_group<1>(p, tiles, ahead);
    if (wide == 2) multiply_group<2>(p, tiles, ahead);
    if (wide == 3) multiply_group<3>(p, tiles, ahead);
#endif
    p.u += in_blocks * kBlock * wide * kBlock;
    p.m += wide * p.m_block;
  }
}

inline int64_t steps_of(int64_t in_blocks, int64_t out_blocks, int64_t tiles) {
  const int64_t wide = std::min<int64_t>(out_blocks, kWidest);
  return divide_up(out_blocks, kWidest) * divide_up(in_blocks, kSlab) *
         divide_up(tiles, 4 * kTilesOf[wide]);
}

// The pass with its images as columns of pixels, so that an epilogue's tiles are a pixel wide.
template <typename Pass>
Pass in_columns(Pass pass) {
  pass.in_extent = {pass.in_extent.pixels(), 1, pass.in_extent.blocks};
  pass.out_extent = {pass.out_extent.pixels(), 1, pass.out_extent.blocks};
  return pass;
}

void forward_pixels(const ForwardConv& images, int64_t first, int64_t count, int64_t batch,
                    float* workspace) {
  const ForwardConv pass = in_columns(images);
  const Extent &in = pass.in_extent, &out = pass.out_extent;
  const Grid grid{images.in_extent, images.stride};
  float* products = workspace + in.blocks * panel_pixels(in.blocks, out.blocks) * kBlock;
  PanelAhead ahead(first, batch, out.pixels());
  if (grid.stride == 1) ahead.add(pass.in, in.blocks);  // else it stands apart
  ahead.add(pass.skip, in.blocks);
  ahead.add(pass.add_to, out.blocks);
  for_panels(first, count, in, out, [&](const PixelPanel& panel) {
    with_forward(pass, [&](auto& value) { fill_panel(grid, panel, workspace, value); });
    ahead.aim(panel.first + panel.count, panel.count, steps_of(in.blocks, out.blocks, panel.tiles));
    multiply_panel(workspace, in.blocks, pass.weights, products, out.blocks, panel.tiles, ahead);
    with_forward_epilogue(
        pass, first, [&](const auto& epilogue) { emit_panel(products, panel, out, epilogue); });
  });
  finish_streams();
}

void backward_pixels(const BackwardConv& images, int64_t first, int64_t count, int64_t batch,
                     float* workspace) {
  const BackwardConv pass = in_columns(images);
  const Extent &in = pass.in_extent, &out = pass.out_extent;
  float *gradient = workspace,
        *input = workspace + out.blocks * panel_pixels(in.blocks, out.blocks) * kBlock;
  const Grid grid{images.in_extent, images.stride};
  PanelAhead ahead(first, batch, out.pixels());
  ahead.add(pass.gradient.g, out.blocks);
  ahead.add(pass.gradient.u, out.blocks);
  ahead.add(pass.passed_on, out.blocks);
  if (grid.stride == 1) {  // else they stand apart
    if (pass.weight_gradient != nullptr) ahead.add(pass.in, in.blocks);
    ahead.add(pass.skip, in.blocks);
    ahead.add(pass.value, in.blocks);
  }
  for_panels(first, count, in, out, [&](const PixelPanel& panel) {
    with_backward(pass, [&](auto& value) { fill_panel({out}, panel, gradient, value); });
    if (pass.weight_gradient != nullptr) {
      with_input(pass.in, pass.before, [&](auto& value) { fill_panel(grid, panel, input, value); });
      add_position(Panel(input, in.blocks, panel.tiles), Panel(gradient, out.blocks, panel.tiles),
                   0, {0, in.blocks}, in.blocks, out.blocks, panel.count, pass.weight_gradient,
                   pass.fresh && panel.first == 0);
    }
    if (pass.weights == nullptr) return;
    ahead.aim(panel.first + panel.count, panel.count, steps_of(out.blocks, in.blocks, panel.tiles));
    multiply_panel(gradient, out.blocks, pass.weights, input, in.blocks, panel.tiles, ahead);
    if (grid.stride == 2) return add_panel(input, panel, grid, pass.out);
    with_backward_epilogue<1>(
        pass, first, [&](const auto& epilogue) { emit_panel(input, panel, in, epilogue); });
  });
  finish_streams();
}

}  // namespace
}  // namespace pathnet
