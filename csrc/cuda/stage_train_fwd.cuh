#pragma once
// stage_train, forward: a convolution whose prologue makes what it reads and whose epilogue makes
// the statistics that the norm behind it waits for (docs/stage-train-cuda.md).
#include "stage_train_product.cuh"
#include "stage_train_sums.cuh"

namespace pathnet::train {

enum Prologue { kInput, kNorm, kMerge };     // x; relu(norm(u)); relu(norm(u) + x)
enum Bits { kNoBits, kNewBits, kJoinBits };  // what becomes of the mask of a merged value

struct NormPlan {
  const float *weight, *bias;
  float *running_mean, *running_var;
  int64_t* batches;
  float eps, momentum, multiplier;  // the block's s for its last norm, else 1
  bool batch_stats, moves;
};

struct ForwardPlan {
  Batch batch;
  Prologue prologue;
  const void *x, *u;   // [N, H, W, C]
  const float* state;  // of the norm of u
  void* merged;
  uint8_t* bits;  // [pixels, C / 8]
  Bits join;
  Weights weights;
  void* out;
  NormPlan norm;     // behind the convolution
  float* state_out;  // its state, [4, C]
  float* slots;
  int* counter;
};

// A byte of bits: which of eight merged values are positive.
__device__ __forceinline__ void store_bits(uint8_t* byte, unsigned alive, Bits join) {
  *byte = join == kJoinBits ? alive & *byte : alive;
}

// Sums about the first value that the thread sees, which lose no digits to a large mean.
struct ShiftedSums {
  float pivot[4], sum[4], squares[4];
  int count = 0;  // of pixels

  __device__ __forceinline__ void add(int k, float value) {
    if (count == 0) pivot[k] = value, sum[k] = squares[k] = 0.f;
    const float apart = value - pivot[k];
    sum[k] += apart, squares[k] = fmaf(apart, apart, squares[k]);
  }
  __device__ __forceinline__ Moments moments(int k) const {
    if (count == 0) return {0.f, 0.f, 0.f};
    const float mean = sum[k] / count;
    return {static_cast<float>(count), pivot[k] + mean, fmaxf(squares[k] - sum[k] * mean, 0.f)};
  }
};

template <class Op, int C>
class Forward {
 public:
  using Element = typename Op::Element;
  static __host__ __device__ int64_t shared_bytes(const Batch& batch) {
    const int64_t tile = static_cast<int64_t>(batch.tile_pixels()) * Tile<Op, C>::kPixelBytes;
    return Steps<Op, C>::kBytes + 2 * C * 4 +
           max(tile, static_cast<int64_t>(SumRows<Moments, C>::kBytes));
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
    finish();
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
    for_each_pair<C>(sums, band.pixels, first, [&](int q, int j, float low, float high) {
      const auto pair = Op::pack(low, high);
      auto* to = static_cast<Element*>(plan_.out) + (band.first_pixel + q) * C +
                 Warps<C>::first_channel(j);
      *reinterpret_cast<typename Op::Pair*>(to) = pair;
      const float2 stored = Op::unpack(pair);
      sums_.add(j * 2, stored.x), sums_.add(j * 2 + 1, stored.y);
      sums_.count += j;  // both pairs of this pixel are in
    });
  }

  __device__ void finish() {
    const NormPlan& norm = plan_.norm;
    const int c = threadIdx.x;
    if (!norm.batch_stats) {
      if (blockIdx.x == 0 && c < C)
        write_state(c, norm.running_mean[c], sqrtf(norm.running_var[c] + norm.eps));
      return;
    }
    Moments mine[4], total;
    for (int k = 0; k < 4; ++k) mine[k] = sums_.moments(k);
    __syncthreads();  // the tile has been read
    const SumRows<Moments, C> rows{tile().memory};
    rows.clear();
    rows.add(mine);
    if (!merge_over_grid(rows, plan_.slots, plan_.counter, total)) return;
    write_state(c, total.mean, sqrtf(total.squares / total.count + norm.eps));
    if (!norm.moves) return;
    const float variance = total.squares / (total.count - 1.f);
    norm.running_mean[c] += norm.momentum * (total.mean - norm.running_mean[c]);
    norm.running_var[c] += norm.momentum * (variance - norm.running_var[c]);
    if (c == 0) *norm.batches += 1;
  }

  __device__ void write_state(int c, float mean, float deviation) {
    const NormPlan& norm = plan_.norm;
    const float scale = norm.multiplier * norm.weight[c] / deviation;
    plan_.state_out[kMean * C + c] = mean;
    plan_.state_out[kInverse * C + c] = 1.f / deviation;
    plan_.state_out[kScale * C + c] = scale;
    plan_.state_out[kShift * C + c] = norm.multiplier * norm.bias[c] - mean * scale;
  }

  const ForwardPlan& plan_;
  ShiftedSums sums_;
};

template <class Op, int C>
__global__ void __launch_bounds__(Warps<C>::kThreads, Warps<C>::kResident)
    stage_train_forward_kernel(const __grid_constant__ ForwardPlan plan) {
  Forward<Op, C>(plan).run();
}

}  // namespace pathnet::train
