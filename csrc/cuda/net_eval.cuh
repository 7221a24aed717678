#pragma once
// net_eval: a whole CIFAR ResNet, image to logits, in one launch. Each thread block runs one image
// through one set of gates; the activations never leave the multiprocessor (docs/net-eval.md).
//
// The residual stream x stays in registers, in float32, spread over all threads as the products'
// sums are: adding f(x) to it is what the last products do anyway. Shared memory holds the one tile
// that the next convolution reads.
#include "net_eval_conv.cuh"

namespace pathnet {

template <class Op, bool kPreact>
class NetEval {
 public:
  __device__ explicit NetEval(const NetEvalPlan& plan)
      : plan_(plan), mask_(blockIdx.x % plan.masks), weights_(plan, mask_) {}

  __device__ void run() {
    const int h = plan_.height, w = plan_.width;
    const Pixels<16> fine(h, w);
    Sums<16> x16;
    stem(fine, x16);
    blocks(0, fine, x16);

    const Pixels<32> middle((h + 1) / 2, (w + 1) / 2);
    Sums<32> x32;
    transition(0, fine, x16, middle, x32);
    blocks(1, middle, x32);

    const Pixels<64> coarse((middle.height + 1) / 2, (middle.width + 1) / 2);
    Sums<64> x64;
    transition(1, middle, x32, coarse, x64);
    blocks(2, coarse, x64);
    head(coarse, x64);
  }

 private:
  template <int C>
  __device__ __forceinline__ Tile<Op, C> tile() const {
    return {dynamic_shared() + kRingBytes};
  }
  __device__ __forceinline__ int first_of(int stage) const {
    return stage == 0 ? 0 : plan_.stage_blocks[0] + (stage == 2 ? plan_.stage_blocks[1] : 0);
  }
  __device__ __forceinline__ const float* vector(int number, Vector which) const {
    return plan_.vectors + (number * kVectors + which) * kWidest;
  }
  __device__ __forceinline__ int64_t entry(int position) const {
    return static_cast<int64_t>(mask_) * plan_.blocks() + position;
  }

  // relu(bn1(x)) into the tile, the operand of a pre-activation block's first convolution.
  template <int C>
  __device__ __forceinline__ void write_normalised(int number, const Pixels<C>& pixels,
                                                   const Sums<C>& x) {
    const Channels<C> scale(vector(number, kNormScale)), shift(vector(number, kNormShift));
    write_tile(tile<C>(), pixels, x, [&](float v, int j, int k) {
      return relu(fmaf(v, scale.of(j, k), shift.of(j, k)));
    });
  }

  __device__ void stem(const Pixels<16>& pixels, Sums<16>& x) {
    load_image();
    multiply<9, 1>(tile<16>(), pixels.pitch(), pixels, weights_, x);
    if constexpr (!kPreact) {
      const Channels<16> bias(vector(0, kFirstBias));
      change(x, [&](float v, int j, int k) { return relu(v + bias.of(j, k)); });
      __syncthreads();  // the image has been read
      write_tile(tile<16>(), pixels, x, [](float v, int, int) { return v; });
    }
  }

  __device__ void load_image() {
    using Element = typename Op::Element;
    zero_halo(tile<16>(), plan_.height, plan_.width);
    const int64_t* stride = plan_.image_strides;
    const Element* image =
        static_cast<const Element*>(plan_.images) + blockIdx.x / plan_.repeat * stride[0];
    for (int i = threadIdx.x; i < plan_.height * plan_.width; i += kThreads) {
      const int y = i / plan_.width, x = i % plan_.width;
      const Element* pixel = image + y * stride[2] + x * stride[3];
      auto value = [&](int c) {
        return c < plan_.channels ? Op::load(pixel + c * stride[1]) : 0.f;
      };
      for (int c = 0; c < 16; c += 2) {
        Op::store_pair(tile<16>().channel((y + 1) * (plan_.width + 2) + x + 1, c), value(c),
                       value(c + 1));
      }
    }
  }

  // The blocks of a stage whose shortcut is the identity. Where one is OFF, nothing happens.
  template <int C>
  __device__ void blocks(int stage, const Pixels<C>& pixels, Sums<C>& x) {
    const int first = first_of(stage);
    for (int position = first + (stage > 0); position < first + plan_.stage_blocks[stage];
         ++position) {
      if (__ldg(plan_.gates + entry(position)) != 0) block(position, pixels, x);
    }
  }

  // x = act(x + s f(x)). Post-activation: the tile holds x, before and after.
  template <int C>
  __device__ __forceinline__ void block(int position, const Pixels<C>& pixels, Sums<C>& x) {
    const int number = opaque(__ldg(plan_.order + entry(position)) + 1);
    if constexpr (kPreact) {
      __syncthreads();  // the tile has been read
      write_normalised(number, pixels, x);
    }
    Sums<C> inner;
    multiply<9, 1>(tile<C>(), pixels.pitch(), pixels, weights_, inner);
    __syncthreads();
    second_half(position, number, pixels, inner, x);
  }

  // x += s (conv2(relu(inner + b1)) + b2), and relu. All threads have read the tile.
  template <int C>
  __device__ __forceinline__ void second_half(int position, int number, const Pixels<C>& pixels,
                                              const Sums<C>& inner, Sums<C>& x) {
    const float s = __ldg(plan_.scales + entry(position));
    const Channels<C> first(vector(number, kFirstBias)), second(vector(number, kSecondBias));
    write_tile(tile<C>(), pixels, inner,
               [&](float v, int j, int k) { return s * relu(v + first.of(j, k)); });
    multiply<9, 1>(tile<C>(), pixels.pitch(), pixels, weights_, x);
    if constexpr (!kPreact) {
      change(x, [&](float v, int j, int k) { return relu(fmaf(s, second.of(j, k), v)); });
      __syncthreads();
      write_tile(tile<C>(), pixels, x, [](float v, int, int) { return v; });
    }
  }

  // The block between two stages, y = act(h(x) + s f(x)); h(x) alone where it is OFF.
  template <int C>
  __device__ __forceinline__ void transition(int which, const Pixels<C>& from, const Sums<C>& x,
                                             const Pixels<2 * C>& to, Sums<2 * C>& y) {
    const int position = first_of(which + 1), number = __ldg(plan_.order + entry(position)) + 1;
    if constexpr (kPreact) {
      __syncthreads();
      write_tile(tile<C>(), from, x, [](float v, int, int) { return v; });
    }
    __syncthreads();
    shortcut(which, number, from, to, y);
    if (__ldg(plan_.gates + entry(position)) == 0) return close_transition(to, y);
    if constexpr (kPreact) {
      __syncthreads();
      write_normalised(number, from, x);
    }
    Sums<2 * C> inner;
    multiply<9, 2>(tile<C>(), from.pitch(), to, weights_, inner);
    __syncthreads();
    zero_halo(tile<2 * C>(), to.height, to.width);
    second_half(position, number, to, inner, y);
  }

  // What follows h(x) where the strided block is OFF: the tile of the next stage.
  template <int C>
  __device__ __forceinline__ void close_transition(const Pixels<C>& pixels, Sums<C>& y) {
    __syncthreads();
    zero_halo(tile<C>(), pixels.height, pixels.width);
    if constexpr (!kPreact) {
      change(y, [](float v, int, int) { return relu(v); });
      write_tile(tile<C>(), pixels, y, [](float v, int, int) { return v; });
    }
  }

  // y = h(x), from the tile: a strided 1x1 convolution, or every second pixel between zero
  // channels.
  template <int C>
  __device__ __forceinline__ void shortcut(int which, int number, const Pixels<C>& from,
                                           const Pixels<2 * C>& to, Sums<2 * C>& y) {
    if (plan_.shortcut_slices > 0) {
      multiply<1, 2>(tile<C>(), from.pitch(), to, weights_, y);
      if constexpr (!kPreact) {
        const Channels<2 * C> bias(vector(number, kShortcutBias));
        change(y, [&](float v, int j, int k) { return v + bias.of(j, k); });
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < Pixels<2 * C>::kTiles; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int place = to.place(i, k / 2), row = place / to.pitch() - 1,
                  column = place % to.pitch() - 1;
        if (place == 0) continue;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int c = Split<2 * C>::first_channel(j) + k % 2 - plan_.pad_before[which];
          const int pixel = (row * 2 + 1) * from.pitch() + column * 2 + 1;
          if (c >= 0 && c < C) y.at[i][j][k] = Op::load(tile<C>().channel(pixel, c));
        }
      }
    }
  }

  // Logits of the mean over all pixels. The classifier is 64 products a class, too few for tensor
  // cores.
  __device__ void head(const Pixels<64>& pixels, Sums<64>& x) {
    using S = Split<64>;
    if constexpr (kPreact) {
      const Channels<64> scale(vector(0, kNormScale)), shift(vector(0, kNormShift));
      change(x,
             [&](float v, int j, int k) { return relu(fmaf(v, scale.of(j, k), shift.of(j, k))); });
    }
    float* partial = reinterpret_cast<float*>(dynamic_shared() +
                                              kRingBytes);  // [kDown, kWidest], then the means
    float* mean = partial + S::kDown * kWidest;
    __syncthreads();
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      float sum = 0.f;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (pixels.place(0, half) != 0) sum += x.at[0][c / 2][half * 2 + c % 2];
      }
      for (int bits = 4; bits < 32; bits *= 2) sum += __shfl_xor_sync(~0u, sum, bits);
      if (S::lane() < 4) partial[S::down() * kWidest + S::first_channel(c / 2) + c % 2] = sum;
    }
    __syncthreads();
    if (threadIdx.x < kWidest) {
      float sum = 0.f;
      for (int i = 0; i < S::kDown; ++i) sum += partial[i * kWidest + threadIdx.x];
      mean[threadIdx.x] = sum / (pixels.height * pixels.width);
    }
    __syncthreads();
    auto* logits = static_cast<typename Op::Element*>(plan_.logits) +
                   static_cast<int64_t>(blockIdx.x) * plan_.classes;
    for (int i = threadIdx.x; i < plan_.classes; i += kThreads) {
      float sum = __ldg(plan_.classifier + plan_.classes * kWidest + i);
      for (int c = 0; c < kWidest; ++c)
        sum = fmaf(mean[c], __ldg(plan_.classifier + i * kWidest + c), sum);
      Op::store(logits + i, sum);
    }
  }

  const NetEvalPlan& plan_;
  const int mask_;
  WeightStream weights_;
};

template <class Op, bool kPreact>
__global__ void __launch_bounds__(kThreads, 1)
    net_eval_kernel(const __grid_constant__ NetEvalPlan plan) {
  NetEval<Op, kPreact>(plan).run();
}

}  // namespace pathnet
