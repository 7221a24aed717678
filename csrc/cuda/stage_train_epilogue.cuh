#pragma once
// stage_train, backward: what follows the products. A gradient passes the ReLU before it, joins
// that of the skip, is written, and summed up for the norm whose output it belongs to.
#include "stage_train_product.cuh"
#include "stage_train_sums.cuh"

namespace pathnet::train {

enum Mask { kNoMask, kNormed, kValues, kBits };  // alive: norm(u) > 0; x > 0; one bit an element

struct EpiloguePlan {
  const void* skip;  // a gradient that joins before the mask; null: none
  Mask mask;
  const uint8_t* bits;  // [pixels, C / 8], of kBits
  const void* u;        // of the norm before
  const float* state;
  float multiplier;
  bool batch_stats;
  void* g_in;                 // the gradient, [N, H, W, C]
  float *slopes, *gradients;  // [2, C]; null: no norm stands before
  float* slots;
  int* counter;
};

template <class Op, int C>
class Epilogue {
 public:
  using Element = typename Op::Element;
  using Pair = typename Op::Pair;
  static constexpr int kStateBytes = 4 * C * 4;
  static constexpr int kSharedBytes = kStateBytes + SumRows<GradientSums, C>::kBytes;

  // `shared`: the state of the norm before, and the sums.
  __device__ Epilogue(const EpiloguePlan& plan, unsigned char* shared)
      : plan_(plan), state_(reinterpret_cast<float*>(shared)), rows_{shared + kStateBytes} {
    if (plan.state == nullptr) return;
    for (int row = 0; row < 4; ++row) copy_vector<C>(state_ + row * C, plan.state + row * C);
    rows_.clear();
  }

  // A pair of channels from first_channel(j) on of a pixel of the batch; `u` and `x` are where u's
  // and those of kValues are, and `sums` those of this thread since the last `add`.
  __device__ __forceinline__ void store(int64_t pixel, int j, float low, float high,
                                        const Element* u, const Element* x,
                                        GradientSums (&sums)[4]) const {
    const int c = Warps<C>::first_channel(j);
    const int64_t at = pixel * C + c;
    const float2 before = plan_.state == nullptr ? float2{} : load(u);
    if (plan_.skip != nullptr) {
      const float2 skip = load(static_cast<const Element*>(plan_.skip) + at);
      low += skip.x, high += skip.y;
    }
    const unsigned alive = alive_at(at, c, before, x);
    const Pair pair = Op::pack(alive & 1 ? low : 0.f, alive & 2 ? high : 0.f);
    *reinterpret_cast<Pair*>(static_cast<Element*>(plan_.g_in) + at) = pair;
    if (plan_.slopes == nullptr) return;
    const float2 g = Op::unpack(pair);
    sums[j * 2].merge({g.x, g.x * xhat(before.x, c)});
    sums[j * 2 + 1].merge({g.y, g.y * xhat(before.y, c + 1)});
  }

  // All lanes of a warp together.
  __device__ __forceinline__ void add(GradientSums (&sums)[4]) const {
    if (plan_.slopes != nullptr) rows_.add(sums);
  }

  // The norm's gradients, and the constants of its backward: all threads together.
  __device__ void finish(int64_t pixels) const {
    GradientSums total;
    if (plan_.slopes == nullptr) return;
    if (!merge_over_grid(rows_, plan_.slots, plan_.counter, total)) return;
    const int c = threadIdx.x;
    plan_.gradients[c] = plan_.multiplier * total.products;
    plan_.gradients[C + c] = plan_.multiplier * total.g;
    const float scale = plan_.batch_stats ? state_[kScale * C + c] / pixels : 0.f;
    plan_.slopes[c] = -scale * state_[kInverse * C + c] * total.products;
    plan_.slopes[C + c] = -scale * total.g;
  }

 private:
  static __device__ __forceinline__ float2 load(const Element* from) {
    return Op::unpack(*reinterpret_cast<const Pair*>(from));
  }
  __device__ __forceinline__ float xhat(float u, int c) const {
    return (u - state_[kMean * C + c]) * state_[kInverse * C + c];
  }
  __device__ __forceinline__ bool positive(float u, int c) const {
    return fmaf(state_[kScale * C + c], u, state_[kShift * C + c]) > 0.f;
  }
  // Two bits, of channels c and c + 1.
  __device__ __forceinline__ unsigned alive_at(int64_t at, int c, float2 u,
                                               const Element* x) const {
    if (plan_.mask == kNoMask) return 3;
    if (plan_.mask == kNormed) return positive(u.x, c) | positive(u.y, c + 1) << 1;
    if (plan_.mask == kBits) return plan_.bits[at / kEach] >> at % kEach;
    const float2 values = load(x);
    return (values.x > 0.f) | (values.y > 0.f) << 1;
  }

  const EpiloguePlan& plan_;
  float* const state_;
  const SumRows<GradientSums, C> rows_;
};

}  // namespace pathnet::train
