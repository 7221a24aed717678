#pragma once
// stage_train, backward: data and weight gradient of a convolution in one pass over its inputs
// (docs/stage-train-cuda.md). The weight gradient stays in registers while a thread block walks
// over its bands.
#include "stage_train_epilogue.cuh"
#include "stage_train_weight_gradient.cuh"

namespace pathnet::train {

// Behind the convolution: a norm; or the sum skip + scale times the convolution, which the norm of
// the next block reads.
enum Follows { kNormFollows, kSumFollows };

struct BackwardPlan {
  Batch batch;
  const void *g, *u;            // the gradient behind the norm that follows; the u that it reads
  const float *state, *slopes;  // of that norm: its backward is scale g + b (u - mean) + c
  // Of a sum alone. Its gradient is that of the norm and of the next sum together, or g where u is
  // null.
  const void* next;  // the gradient of the next sum; null: the skip is cut
  void* entered;     // where the gradient of the sum is written; null: it is g
  float scale;
  const void* source;         // what the convolution read: x, or u before a norm and ReLU
  const float* source_state;  // of that norm; null: x
  Weights weights;
  float* partial;  // [thread blocks, slot_size], this convolution's; null: no weight gradient
  int64_t slot_size, by_output, by_input, by_tap;
  EpiloguePlan epilogue;  // its u is `source` where its mask is kNormed, its x where it is kValues

  __host__ __device__ bool inner() const { return epilogue.mask == kNormed; }
  __host__ __device__ bool masks_by_source() const { return inner() || epilogue.mask == kValues; }
};

template <class Op, int C, Follows kFollows>
class Backward {
 public:
  using Element = typename Op::Element;
  static __host__ __device__ int64_t tile_bytes(const Batch& batch) {
    return static_cast<int64_t>(batch.tile_pixels()) * Tile<Op, C>::kPixelBytes;
  }
  static __host__ __device__ int64_t shared_bytes(const Batch& batch) {
    const int64_t own = static_cast<int64_t>(batch.rows) * batch.width * Tile<Op, C>::kPixelBytes;
    const int64_t sums = WeightGradient<Op, C>::kSharedBytes;
    return kTiles + max(2 * tile_bytes(batch) + own, sums);
  }

  __device__ explicit Backward(const BackwardPlan& plan)
      : plan_(plan), epilogue_(plan.epilogue, reinterpret_cast<unsigned char*>(vector(kVectors))) {}

  __device__ void run() {
    prepare();
#pragma unroll 1
    for (int item = blockIdx.x; item < plan_.batch.items(); item += gridDim.x) {
      const Band band(plan_.batch, item);
      __syncthreads();  // the tiles have been read
      stage(band);
      __syncthreads();
      if (plan_.partial != nullptr) weight_gradient_.add(g(), source(), plan_.batch, band.pixels);
      data_gradient(item, band.pixels);
    }
    __syncthreads();  // the tiles have been read
    if (plan_.partial != nullptr) {
      weight_gradient_.write(reinterpret_cast<float*>(g().memory),
                             plan_.partial + blockIdx.x * plan_.slot_size, plan_.by_output,
                             plan_.by_input, plan_.by_tap, scale());
    }
    epilogue_.finish(plan_.batch.pixels());
  }

 private:
  enum Vector { kGScale, kGMean, kGSlope, kGConstant, kSourceScale, kSourceShift, kVectors };
  static constexpr int kTiles =
      Steps<Op, C>::kBytes + kVectors * C * 4 + Epilogue<Op, C>::kSharedBytes;

  __device__ __forceinline__ uint4* weights() const {
    return reinterpret_cast<uint4*>(dynamic_shared());
  }
  static __device__ __forceinline__ float* vector(int row) {
    return reinterpret_cast<float*>(dynamic_shared() + Steps<Op, C>::kBytes) + row * C;
  }
  __device__ __forceinline__ Tile<Op, C> g() const { return {dynamic_shared() + kTiles}; }
  __device__ __forceinline__ Tile<Op, C> source() const {
    return {dynamic_shared() + kTiles + tile_bytes(plan_.batch)};
  }
  // u or x of the band's own pixels, for the epilogue: pixel q at q, with no halo.
  __device__ __forceinline__ Tile<Op, C> own() const {
    return {dynamic_shared() + kTiles + 2 * tile_bytes(plan_.batch)};
  }

  __device__ void prepare() {
    pack_weights<Op, C>(weights(), plan_.weights);
    zero_sides(g(), plan_.batch);
    zero_sides(source(), plan_.batch);
    if (plan_.u != nullptr) {
      copy_vector<C>(vector(kGScale), plan_.state + kScale * C);
      copy_vector<C>(vector(kGMean), plan_.state + kMean * C);
      copy_vector<C>(vector(kGSlope), plan_.slopes);
      copy_vector<C>(vector(kGConstant), plan_.slopes + C);
    }
    if (plan_.source_state == nullptr) return;
    copy_vector<C>(vector(kSourceScale), plan_.source_state + kScale * C);
    copy_vector<C>(vector(kSourceShift), plan_.source_state + kShift * C);
  }

  __device__ __forceinline__ void stage(const Band& band) {
    for_each_place<C, Chunk<Op>::kCount>(plan_.batch, band, [&](const Place& place) {
      put(g(), place.tile, place.channel, place.inside ? entering(place) : Chunk<Op>{});
      if (plan_.partial != nullptr) {
        put(source(), place.tile, place.channel, place.inside ? read_source(place) : Chunk<Op>{});
      } else if (masks_by_source() && place.mine) {
        read_source(place);
      }
    });
  }

  // The gradient of what follows the convolution: of u, or of the sum; a chunk of it.
  __device__ __forceinline__ Chunk<Op> entering(const Place& place) const {
    const int64_t at = place.pixel * C + place.channel;
    Chunk<Op> g, u, next{};
    g.load(static_cast<const Element*>(plan_.g) + at);
    if constexpr (kFollows == kSumFollows) {
      if (plan_.u == nullptr) return g;
      if (plan_.next != nullptr) next.load(static_cast<const Element*>(plan_.next) + at);
    }
    u.load(static_cast<const Element*>(plan_.u) + at);
#pragma unroll
    for (int i = 0; i < Chunk<Op>::kCount; ++i) {
      const int c = place.channel + i;
      const float apart = Op::load(u.at + i) - vector(kGMean)[c];
      const float rest = fmaf(apart, vector(kGSlope)[c], vector(kGConstant)[c]);
      float value = fmaf(Op::load(g.at + i), vector(kGScale)[c], rest);
      if constexpr (kFollows == kSumFollows) value += Op::load(next.at + i);
      Op::store(g.at + i, value);
    }
    if constexpr (kFollows == kSumFollows) {
      if (place.mine) g.store(static_cast<Element*>(plan_.entered) + at);
    }
    return g;
  }

  // What the convolution has read, a chunk of it; u or x as it is goes to `own`.
  __device__ __forceinline__ Chunk<Op> read_source(const Place& place) const {
    Chunk<Op> value;
    value.load(static_cast<const Element*>(plan_.source) + place.pixel * C + place.channel);
    if (masks_by_source() && place.mine) put_as_is(own(), place.own, place.channel, value);
    if (!inner()) return value;
#pragma unroll
    for (int i = 0; i < Chunk<Op>::kCount; ++i) {
      const int c = place.channel + i;
      Op::store(value.at + i, relu(fmaf(Op::load(value.at + i), vector(kSourceScale)[c],
                                        vector(kSourceShift)[c])));
    }
    return value;
  }

  __device__ __forceinline__ void data_gradient(int item, int pixels) {
    GradientSums of_item[4] = {};
#pragma unroll 1
    for (int first = Warps<C>::down() * 16; first < pixels;
         first += Warps<C>::kTiles * Warps<C>::kDown * 16) {
      Sums<C> sums;
      convolve(g(), weights(), plan_.batch, pixels, first, sums);
      const Band band(plan_.batch, opaque(item));  // anew: registers are short
      for_each_pair<C>(sums, pixels, first, [&](int q, int j, float low, float high) {
        const int64_t pixel = band.first_pixel + q;
        const int c = Warps<C>::first_channel(j);
        const Element* mine = own().channel(q, c);
        const auto* u =
            inner() ? mine : static_cast<const Element*>(plan_.epilogue.u) + pixel * C + c;
        epilogue_.store(pixel, j, scale() * low, scale() * high, u, mine, of_item);
      });
    }
    epilogue_.add(of_item);
  }

  // Whether the convolution has read what a norm gave; before a sum it always has.
  __device__ __forceinline__ bool inner() const { return kFollows == kSumFollows || plan_.inner(); }
  __device__ __forceinline__ bool masks_by_source() const {
    return kFollows == kSumFollows || plan_.masks_by_source();
  }
  // Of the convolution in what follows.
  __device__ __forceinline__ float scale() const {
    return kFollows == kSumFollows ? plan_.scale : 1.f;
  }

  const BackwardPlan& plan_;
  Epilogue<Op, C> epilogue_;
  WeightGradient<Op, C> weight_gradient_;
};

template <class Op, int C, Follows kFollows>
__global__ void __launch_bounds__(Warps<C>::kThreads, Warps<C>::kResident)
    stage_train_backward_kernel(const __grid_constant__ BackwardPlan plan) {
  Backward<Op, C, kFollows>(plan).run();
}

}  // namespace pathnet::train
