#pragma once
// stage_train, forward: a convolution whose prologue makes what it reads and whose epilogue makes
// the statistics that the norm behind it waits for (docs/stage-train-cuda.md).
#include "stage_train_norm.cuh"
#include "stage_train_product.cuh"

namespace pathnet::train {

enum Prologue { kInput, kNorm, kMerge };     // x; relu(norm(u)); relu(norm(u) + x)
enum Bits { kNoBits, kNewBits, kJoinBits };  // what becomes of the mask of a merged value

struct ForwardPlan {
  Batch batch;
  Prologue prologue;
  const void *x, *u;   // [N, H, W, C]
  const float* state;  // of the norm of u
  void* merged;
  uint8_t* bits;  // [pixels, C / 8]
  Bits join;
  Weights weights;
  const void* skip;  // out = skip + scale times the convolution; null: the convolution
  float scale;
  void* out;
  NormPlan norm;     // that reads `out`
  float* state_out;  // its state, [4, C]; null: no norm does
  float* slots;
  int* counter;
};

// A byte of bits: which of eight merged values are positive.
__device__ __forceinline__ void store_bits(uint8_t* byte, unsigned alive, Bits join) {
  *byte = join == kJoinBits ? alive & *byte : alive;
}

template <class Op, int C>
class Forward {
 public:
  using Element = typename Op::Element;
  static __host__ __device__ int64_t shared_bytes(const Batch& batch) {
    const int64_t tile = static_cast<int64_t>(batch.tile_pixels()) * Tile<Op, C>::kPixelBytes;
    return Steps<Op, C>::kBytes + 2 * C * 4 +
           max(tile, static_cast<int64_t>(NormSums<C>::kSharedBytes));
  }

  __device__ explicit Forward(const ForwardPlan& plan) : plan_(plan) {}

  __device__ void run() {
    prepare();
    for (int64_t item = blockIdx.x; item < plan_.batch.items(); item += gridDim.x) {
      const Band band(plan_.batch, item);
      __syncthreads();  // the tile has been read
      stage(band);
      __syncthreads();
      for (int first = Warps<C>::down() * 16; first < band.pixels;
           first += Warps<C>::kTiles * Warps<C>::kDown * 16) {
        Sums<C> sums;
        convolve(tile(), weights(), plan_.batch, band.pixels, first, sums);
        write(band, first, sums);
      }
    }
    __syncthreads();  // the tile has been read
    if (plan_.state_out != nullptr)
      sums_.finish(plan_.norm, plan_.state_out, tile().memory, plan_.slots, plan_.counter);
  }

 private:
  __device__ __forceinline__ uint4* weights() const {
    return reinterpret_cast<uint4*>(dynamic_shared());
  }
  __device__ __forceinline__ float* vector(int row) const {  // scale, shift
    return reinterpret_cast<float*>(dynamic_shared() + Steps<Op, C>::kBytes) + row * C;
  }
  __device__ __forceinline__ Tile<Op, C> tile() const {
    return {dynamic_shared() + Steps<Op, C>::kBytes + 2 * C * 4};
  }

  __device__ void prepare() {
    pack_weights<Op, C>(weights(), plan_.weights);
    zero_sides(tile(), plan_.batch);
    if (plan_.prologue == kInput) return;
    copy_vector<C>(vector(0), plan_.state + kScale * C);
    copy_vector<C>(vector(1), plan_.state + kShift * C);
  }

  __device__ void stage(const Band& band) {
    for_each_place<C, kEach>(plan_.batch, band, [&](const Place& place) {
      Eight<Op> value{};
      if (place.inside) value = read(place);
      for (int i = 0; i < kEach; i += Chunk<Op>::kCount) {
        Chunk<Op> chunk;
        memcpy(chunk.at, value.at + i, 16);
        put(tile(), place.tile, place.channel + i, chunk);
      }
    });
  }

  // Eight values behind the prologue; a merged value is written where it is the band's own.
  __device__ __forceinline__ Eight<Op> read(const Place& place) {
    const int64_t at = place.pixel * C + place.channel;
    Eight<Op> x{}, u;
    if (plan_.prologue != kNorm) x.load(static_cast<const Element*>(plan_.x) + at);
    if (plan_.prologue == kInput) return x;
    u.load(static_cast<const Element*>(plan_.u) + at);
    unsigned alive = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int c = place.channel + i;
      const float y =
          relu(fmaf(vector(0)[c], Op::load(u.at + i), vector(1)[c]) + Op::load(x.at + i));
      alive |= (y > 0.f) << i;
      Op::store(u.at + i, y);
    }
    if (plan_.prologue == kMerge && place.mine) {
      u.store(static_cast<Element*>(plan_.merged) + at);
      if (plan_.join != kNoBits) store_bits(plan_.bits + at / kEach, alive, plan_.join);
    }
    return u;
  }

  // Statistics are those of the values as they are stored.
  __device__ __forceinline__ void write(const Band& band, int first, const Sums<C>& sums) {
    using Pair = typename Op::Pair;
    for_each_pair<C>(sums, band.pixels, first, [&](int q, int j, float low, float high) {
      const int64_t at = (band.first_pixel + q) * C + Warps<C>::first_channel(j);
      if (plan_.skip != nullptr) {
        const auto* skip = static_cast<const Element*>(plan_.skip) + at;
        const float2 beside = Op::unpack(*reinterpret_cast<const Pair*>(skip));
        low = fmaf(plan_.scale, low, beside.x), high = fmaf(plan_.scale, high, beside.y);
      }
      const Pair pair = Op::pack(low, high);
      *reinterpret_cast<Pair*>(static_cast<Element*>(plan_.out) + at) = pair;
      sums_.add(j, Op::unpack(pair));
    });
  }

  const ForwardPlan& plan_;
  NormSums<C> sums_;
};

template <class Op, int C>
__global__ void __launch_bounds__(Warps<C>::kThreads, Warps<C>::kResident)
    stage_train_forward_kernel(const __grid_constant__ ForwardPlan plan) {
  Forward<Op, C>(plan).run();
}

}  // namespace pathnet::train
