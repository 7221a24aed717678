#pragma once
// stage_train: a batch cut into bands of whole rows, and which pixels and channels a warp has.
#include "eight.cuh"
#include "tile.cuh"

namespace pathnet::train {

// The warps of a thread block. In a product each takes 16 channels of every kDown-th group of 16
// pixels.
template <int C>
struct Warps {
  static constexpr int kCount = C == 64 ? 16 : 8, kThreads = kCount * 32;
  static constexpr int kAcross = C / 16, kDown = kCount / kAcross;
  static constexpr int kTiles = 1;                   // groups that a warp multiplies at a time
  static constexpr int kResident = C == 64 ? 1 : 2;  // thread blocks that share a multiprocessor
  static __device__ __forceinline__ int lane() { return opaque(threadIdx.x) % 32; }
  static __device__ __forceinline__ int across() { return threadIdx.x / 32 % kAcross; }
  static __device__ __forceinline__ int down() { return threadIdx.x / 32 / kAcross; }
  static __device__ __forceinline__ int first_channel(int j) {
    return across() * 16 + j * 8 + lane() % 4 * 2;
  }
};

struct Batch {  // images of height x width, each cut into `bands` of at most `rows`
  int images, height, width, rows, bands;

  __host__ __device__ int items() const { return images * bands; }
  __host__ __device__ int64_t pixels() const {
    return static_cast<int64_t>(images) * height * width;
  }
  __host__ __device__ int pitch() const { return width + 2; }
  __host__ __device__ int tile_pixels() const { return (rows + 2) * pitch(); }
  // The upper left of the nine pixels of the tile around pixel q of a band.
  __device__ __forceinline__ int window(int q) const {
    const int w = opaque(width);  // whose reciprocal is not kept
    return q / w * (w + 2) + q % w;
  }
};

struct Band {
  int first_row, rows, pixels;
  int64_t first_pixel;  // of the batch

  __device__ Band(const Batch& batch, int item) {
    first_row = item % batch.bands * batch.rows;
    rows = min(batch.rows, batch.height - first_row);
    pixels = rows * batch.width;
    const int row = item / batch.bands * batch.height + first_row;  // of the batch
    first_pixel = static_cast<int64_t>(row) * batch.width;
  }
};

template <class Op>
struct Chunk {  // 16 bytes of one pixel
  using Element = typename Op::Element;
  static constexpr int kCount = 16 / sizeof(Element);
  Element at[kCount];

  __device__ __forceinline__ void load(const Element* from) {
    const uint4 word = *reinterpret_cast<const uint4*>(from);
    memcpy(at, &word, 16);
  }
  __device__ __forceinline__ void store(Element* to) const {
    uint4 word;
    memcpy(&word, at, 16);
    *reinterpret_cast<uint4*>(to) = word;
  }
};

struct Place {  // some channels of a pixel of the band, or of the rows beside it
  int tile, own, channel;
  int64_t pixel;      // of the batch
  bool inside, mine;  // of the image; of the band, where it is pixel `own`
};

// Calls visit(place) for what the tile of a band holds, its sides apart, kCount channels at a time.
template <int C, int kCount, class Visit>
__device__ __forceinline__ void for_each_place(const Batch& batch, const Band& band, Visit visit) {
  constexpr int kInPixel = C / kCount;
  const int count = (band.rows + 2) * batch.width * kInPixel;
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += Warps<C>::kThreads) {
    const int q = i / kInPixel, row = q / batch.width, column = q % batch.width;
    const int image_row = band.first_row + row - 1;
    Place place;
    place.tile = row * batch.pitch() + column + 1;
    place.own = q - batch.width;
    place.channel = i % kInPixel * kCount;
    place.pixel = band.first_pixel + place.own;
    place.inside = image_row >= 0 && image_row < batch.height;
    place.mine = row > 0 && row <= band.rows;
    visit(place);
  }
}

// A chunk into the tile.
template <class Op, int C>
__device__ __forceinline__ void put_as_is(const Tile<Op, C>& tile, int pixel, int channel,
                                          const Chunk<Op>& chunk) {
  uint4 word;
  memcpy(&word, chunk.at, 16);
  *reinterpret_cast<uint4*>(tile.chunk(pixel, channel / Chunk<Op>::kCount)) = word;
}

// The same, rounded as factors of a product.
template <class Op, int C>
__device__ __forceinline__ void put(const Tile<Op, C>& tile, int pixel, int channel,
                                    Chunk<Op> chunk) {
  if constexpr (sizeof(typename Op::Element) == 4) {
#pragma unroll
    for (int i = 0; i < Chunk<Op>::kCount; ++i) chunk.at[i] = Op::factor(chunk.at[i]);
  }
  put_as_is(tile, pixel, channel, chunk);
}

// The columns beside the image, which stay zero.
template <class Op, int C>
__device__ void zero_sides(const Tile<Op, C>& tile, const Batch& batch) {
  constexpr int kChunks = Tile<Op, C>::kChunks;
  for (int i = threadIdx.x; i < (batch.rows + 2) * 2 * kChunks; i += Warps<C>::kThreads) {
    const int side = i / kChunks, pixel = side / 2 * batch.pitch() + side % 2 * (batch.width + 1);
    *reinterpret_cast<uint4*>(tile.chunk(pixel, i % kChunks)) = make_uint4(0, 0, 0, 0);
  }
}

// A row of a table [rows, C] of numbers a channel, into shared memory.
template <int C>
__device__ __forceinline__ void copy_vector(float* to, const float* from) {
  for (int c = threadIdx.x; c < C; c += Warps<C>::kThreads) to[c] = __ldg(from + c);
}

}  // namespace pathnet::train
