// A 3x3 convolution of images with stride 1, by panels of tiles: transform the input, multiply,
// transform the output and hand it to an epilogue.
#pragma once
#include "ahead.h"
#include "product.h"
#include "winograd.h"
#include "winograd_weights.h"

namespace pathnet {
namespace {

// A run of tiles in one row of tiles of one image.
struct Segment {
  int64_t image, row, column;  // of the first tile, in tiles
  int64_t tiles;
  int64_t at;  // of the first tile in the panel
};

// Calls visit(segment) for the tiles first ... first + count - 1 of the images, counted through.
template <typename Visit>
PATHNET_INLINE void for_segments(const Image& shape, int64_t first, int64_t count,
                                 const Visit& visit) {
  const int64_t columns = divide_up(shape.width, kTile);
  const int64_t per_image = columns * divide_up(shape.height, kTile);
  for (int64_t at = 0; at < count;) {
    const int64_t tile = first + at, inside = tile % per_image, column = inside % columns;
    const Segment segment{tile / per_image, inside / columns, column,
                          std::min(count - at, columns - column), at};
    visit(segment);
    at += segment.tiles;
  }
}

// Where a panel's values stand: [positions, blocks, tiles, 16]. Positions are a cache line further
// apart than they need be, or they would meet in the same lines of the first cache.
struct Panel {
  float* data;
  int64_t block_stride, position_stride;
  Panel(float* data, int64_t blocks, int64_t tiles)
      : data(data), block_stride(tiles * kBlock), position_stride(blocks * block_stride + kBlock) {}

  float* at(int64_t block, int64_t tile, int r) const {
    return data + block * block_stride + tile * kBlock + r * kLanes;
  }
  // Takes the values of register r of a block, from tile `first` on.
  auto writer(int64_t block, int64_t first, int r) const {
    return
        [to = at(block, first, r), stride = position_stride](int position, int64_t tile, Vector v)
            __attribute__((always_inline)) { store(to + position * stride + tile * kBlock, v); };
  }
};

// `panel` is a Panel or another one with its `writer`.
template <typename AnyPanel>
void gather(const Image* in, int64_t first, int64_t count, const AnyPanel& panel) {
  for_segments(in[0], first, count, [&](const Segment& s) {
    const Image& image = in[s.image];
    for (int64_t b = 0; b < image.blocks; ++b)
      transform_input(
          image.at(b, s.row * kTile - 1, s.column * kTile - 1), image.row_stride(), s.tiles,
          [&](int r) __attribute__((always_inline)) { return panel.writer(b, s.at, r); });
  });
}

// One tile into the epilogue; tiles on the lower and right edge are cut.
template <bool kWhole, typename Epilogue, typename State>
PATHNET_INLINE void emit_tile(const float* products, int64_t position_stride, int64_t rows,
                              int64_t columns, const Epilogue& epilogue, State& state) {
  transform_output(products, position_stride,
                   [&](int j, const Vector y[kTile]) __attribute__((always_inline)) {
                     if (!kWhole && j >= columns) return;
                     for (int i = 0; i < kTile; ++i)
                       if (kWhole || i < rows) epilogue.put(state, y[i], i, j);
                   });
}

template <typename Epilogue>
void scatter(const Panel& panel, const Image& out, int64_t first, int64_t count,
             const Epilogue& epilogue) {
  for_segments(out, first, count, [&](const Segment& s) {
    const int64_t rows = out.height - s.row * kTile;
    for (int64_t b = 0; b < out.blocks; ++b)
      for (int r = 0; r < kRegisters; ++r) {
        auto state = epilogue.begin(s.image, b, r);
        const float* products = panel.at(b, s.at, r);
        for (int64_t t = 0; t < s.tiles; ++t, products += kBlock) {
          const int64_t columns = out.width - (s.column + t) * kTile;
          epilogue.move(state, s.row * kTile, (s.column + t) * kTile);
          if (rows >= kTile && columns >= kTile)
            emit_tile<true>(products, panel.position_stride, rows, columns, epilogue, state);
          else
            emit_tile<false>(products, panel.position_stride, rows, columns, epilogue, state);
        }
        epilogue.end(state, s.image, b, r);
      }
  });
}

// The blocks of input channels that meet weights at one position.
struct Reach {
  int64_t first, blocks;
};

// A convolution of stride 2 reads the phases of its input (winograd_weights.h) in the order of
// kPhases. Where a phase has no tap its weights vanish at positions 0, 5 or both of a direction;
// this order keeps the phases that are left side by side. At position 5 none is left.
inline Reach reach_of_phases(int position, int64_t in_blocks) {
  const int row = position / kPatch, column = position % kPatch;
  if (row == kPatch - 1 || column == kPatch - 1) return {0, 0};
  const int first = row == 0 ? 2 : column == 0 ? 1 : 0, last = column == 0 ? 3 : 4;
  return {first * in_blocks / 4, (last - first) * in_blocks / 4};
}

inline Reach reach_of(int position, int64_t in_blocks, bool phases) {
  return phases ? reach_of_phases(position, in_blocks) : Reach{0, in_blocks};
}

inline bool in_place(int64_t in_blocks, int64_t out_blocks) {
  return in_blocks == out_blocks && out_blocks <= kWidest;
}

// Tiles of one panel, so that it stays close to the first cache, in blocks of channels times tiles
// (72 KiB of products). At least so many tiles share a slab of weights that the next one arrives
// meanwhile; and weights of more than 16 blocks times blocks, which do not stay in the second
// cache, are read once for more tiles still.
constexpr int64_t kPanelBlocks = 32, kFewestTiles = 16, kCachedWeights = 16, kSharingTiles = 64;

inline int64_t panel_tiles(int64_t in_blocks, int64_t out_blocks) {
  const int64_t near = kPanelBlocks / std::max(in_blocks, out_blocks);
  const int64_t least = in_blocks * out_blocks > kCachedWeights ? kSharingTiles : kFewestTiles;
  return round_up(std::max(near, least), tile_multiple(out_blocks));
}

inline int64_t workspace_floats(int64_t in_blocks, int64_t out_blocks) {
  const int64_t tiles = panel_tiles(in_blocks, out_blocks);
  return kPositions * ((in_blocks + out_blocks) * tiles * kBlock + 2 * kBlock);
}

// All positions of a panel.
template <typename Prefetch>
void multiply_panel(const Panel& v, const Panel& m, int64_t in_blocks, int64_t out_blocks,
                    int64_t tiles, const float* weights, bool phases, Prefetch& ahead) {
  for (int p = 0; p < kPositions; ++p, weights += position_floats(in_blocks, out_blocks)) {
    ahead.step();
    float* products = m.data + p * m.position_stride;
    const Reach reach = reach_of(p, in_blocks, phases);
    if (reach.blocks == 0)
      std::memset(products, 0, out_blocks * tiles * kBlock * sizeof(float));
    else
      multiply_position({v.data + p * v.position_stride + reach.first * v.block_stride,
                         v.block_stride, reach.blocks, weights, products, m.block_stride,
                         reach.first, in_blocks - reach.first - reach.blocks},
                        tiles, out_blocks);
  }
}

// Convolves `images` images of one shape; `out` is the shape of the results that the epilogue gets.
// `phases`: the images are the phases of another one, in the order of kPhases.
template <typename Epilogue, typename Prefetch = NotAhead>
void convolve(const Image* in, const Image& out, int64_t images, const float* weights,
              float* workspace, const Epilogue& epilogue, Prefetch&& ahead = {},
              bool phases = false) {
  const int64_t tiles = images * divide_up(out.height, kTile) * divide_up(out.width, kTile);
  const int64_t in_blocks = in[0].blocks, most = panel_tiles(in_blocks, out.blocks);
  const int64_t multiple = tile_multiple(out.blocks);
  ahead.spread_over(divide_up(tiles, most) * kPositions);
  for (int64_t first = 0; first < tiles; first += most) {
    const int64_t count = std::min(most, tiles - first), padded = round_up(count, multiple);
    const Panel v(workspace, in_blocks, padded);
    const Panel m(
        in_place(in_blocks, out.blocks) ? workspace : workspace + kPositions * v.position_stride,
        out.blocks, padded);
    gather(in, first, count, v);
    multiply_panel(v, m, in_blocks, out.blocks, padded, weights, phases, ahead);
    scatter(m, out, first, count, epilogue);
  }
}

}  // namespace
}  // namespace pathnet
