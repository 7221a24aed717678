#pragma once
// net_eval: a whole CIFAR ResNet, image to logits, in one launch. Each thread block runs one image
// through one set of gates; the activations never leave the multiprocessor (docs/net-eval.md).
//
// The residual stream x stays with the threads, in float32, spread over them as the products' sums
// are: adding f(x) to it is what the last products do anyway. Shared memory holds the one tile
// that the next convolution reads.
#include "net_eval_conv.cuh"

namespace pathnet {

// kWidth: channels of the first stage. kTiles: groups of 16 pixels that a warp holds there.
template <class Op, bool kPreact, int kWidth, int kTiles>
class NetEval {
 public:
  __device__ explicit NetEval(const NetEvalPlan& plan)
      : plan_(plan), mask_(blockIdx.x % plan.masks), weights_(plan, mask_) {}

  static void count_shortcut_slices(NetEvalPlan& plan, bool projects) {
    plan.shortcut_slices[0] = projects ? Steps<Op, kWidth, 2 * kWidth, 1>::kSlices : 0;
    plan.shortcut_slices[1] = projects ? Steps<Op, 2 * kWidth, 4 * kWidth, 1>::kSlices : 0;
  }

  __device__ void run() {
    const int h = plan_.height, w = plan_.width;
    const Pixels<Fine> fine(h, w);
    Stream<Fine> x_fine;
    stem(fine, x_fine);
    blocks(0, fine, x_fine);

    const Pixels<Middle> middle((h + 1) / 2, (w + 1) / 2);
    Stream<Middle> x_middle;
    transition(0, fine, x_fine, middle, x_middle);
    blocks(1, middle, x_middle);

    const Pixels<Coarse> coarse((middle.height + 1) / 2, (middle.width + 1) / 2);
    Stream<Coarse> x_coarse;
    transition(1, middle, x_middle, coarse, x_coarse);
    blocks(2, coarse, x_coarse);
    head(coarse, x_coarse.load());
  }

 private:
  using Fine = Split<kWidth, kTiles>;
  using Middle = typename Fine::Next;
  using Coarse = typename Middle::Next;
  static constexpr int kWidest = Coarse::kChannels, kImageChannels = 16;

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
    return static_cast<int64_t>(opaque(mask_)) * plan_.blocks() + position;  // keeps no upper half
  }

  // relu(bn1(x)) into the tile, the operand of a pre-activation block's first convolution.
  template <class S>
  __device__ __forceinline__ void write_normalised(int number, const Pixels<S>& pixels,
                                                   const Stream<S>& x) {
    const Channels<S> scale(vector(number, kNormScale)), shift(vector(number, kNormShift));
    write_tile(tile<S::kChannels>(), pixels, x.load(), [&](float v, int j, int k) {
      return relu(fmaf(v, scale.of(j, k), shift.of(j, k)));
    });
  }

  __device__ void stem(const Pixels<Fine>& pixels, Stream<Fine>& x) {
    load_image();
    Sums<Fine> sums;
    multiply<9, 1>(tile<kImageChannels>(), pixels.pitch(), pixels, weights_, sums);
    if constexpr (!kPreact) {
      const Channels<Fine> bias(vector(0, kFirstBias));
      change(sums, [&](float v, int j, int k) { return relu(v + bias.of(j, k)); });
    }
    x.store(sums);
    if constexpr (!kPreact || kWidth != kImageChannels) __syncthreads();  // the image has been read
    if constexpr (kWidth != kImageChannels) {
      zero_halo(tile<kWidth>(), pixels.height, pixels.width);
    }
    if constexpr (!kPreact) {
      write_tile(tile<kWidth>(), pixels, sums, [](float v, int, int) { return v; });
    }
  }

  __device__ void load_image() {
    using Element = typename Op::Element;
    zero_halo(tile<kImageChannels>(), plan_.height, plan_.width);
    const int64_t* stride = plan_.image_strides;
    const Element* image =
        static_cast<const Element*>(plan_.images) + blockIdx.x / plan_.repeat * stride[0];
    for (int i = threadIdx.x; i < plan_.height * plan_.width; i += kThreads) {
      const int y = i / plan_.width, x = i % plan_.width;
      const Element* pixel = image + y * stride[2] + x * stride[3];
      auto value = [&](int c) {
        return c < plan_.channels ? Op::load(pixel + c * stride[1]) : 0.f;
      };
      for (int c = 0; c < kImageChannels; c += 2) {
        Op::store_pair(tile<kImageChannels>().channel((y + 1) * (plan_.width + 2) + x + 1, c),
                       value(c), value(c + 1));
      }
    }
  }

  // The blocks of a stage whose shortcut is the identity. Where one is OFF, nothing happens.
  template <class S>
  __device__ void blocks(int stage, const Pixels<S>& pixels, Stream<S>& x) {
    const int first = first_of(stage);
    for (int position = first + (stage > 0); position < first + plan_.stage_blocks[stage];
         ++position) {
      if (__ldg(plan_.gates + entry(position)) != 0) block(position, pixels, x);
    }
  }

  // x = act(x + s f(x)). Post-activation: the tile holds x, before and after.
  template <class S>
  __device__ __forceinline__ void block(int position, const Pixels<S>& pixels, Stream<S>& x) {
    const int number = opaque(__ldg(plan_.order + entry(position)) + 1);
    if constexpr (kPreact) {
      __syncthreads();  // the tile has been read
      write_normalised(number, pixels, x);
    }
    Sums<S> inner;
    multiply<9, 1>(tile<S::kChannels>(), pixels.pitch(), pixels, weights_, inner);
    __syncthreads();
    write_inner(position, number, pixels, inner);
    add_second(position, number, pixels, x);
  }

  // s relu(inner + b1) into the tile, which all threads have read.
  template <class S>
  __device__ __forceinline__ void write_inner(int position, int number, const Pixels<S>& pixels,
                                              const Sums<S>& inner) {
    const float s = __ldg(plan_.scales + entry(position));
    const Channels<S> bias(vector(number, kFirstBias));
    write_tile(tile<S::kChannels>(), pixels, inner,
               [&](float v, int j, int k) { return s * relu(v + bias.of(j, k)); });
  }

  // x = act(x + conv2(tile) + s b2).
  template <class S>
  __device__ __forceinline__ void add_second(int position, int number, const Pixels<S>& pixels,
                                             Stream<S>& x) {
    Sums<S> sums = x.load();
    multiply<9, 1>(tile<S::kChannels>(), pixels.pitch(), pixels, weights_, sums);
    if constexpr (!kPreact) {
      const float s = __ldg(plan_.scales + entry(position));
      const Channels<S> bias(vector(number, kSecondBias));
      change(sums, [&](float v, int j, int k) { return relu(fmaf(s, bias.of(j, k), v)); });
      __syncthreads();
      write_tile(tile<S::kChannels>(), pixels, sums, [](float v, int, int) { return v; });
    }
    x.store(sums);
  }

  // The block between two stages, y = act(h(x) + s f(x)); h(x) alone where it is OFF.
  template <class S>
  __device__ __forceinline__ void transition(int which, const Pixels<S>& from, const Stream<S>& x,
                                             const Pixels<typename S::Next>& to,
                                             Stream<typename S::Next>& y) {
    const int position = first_of(which + 1), number = __ldg(plan_.order + entry(position)) + 1;
    if constexpr (kPreact) {
      __syncthreads();
      write_tile(tile<S::kChannels>(), from, x.load(), [](float v, int, int) { return v; });
    }
    __syncthreads();
    shortcut(which, number, from, to, y);
    if (__ldg(plan_.gates + entry(position)) == 0) return close_transition(to, y);
    if constexpr (kPreact) {
      __syncthreads();
      write_normalised(number, from, x);
    }
    Sums<typename S::Next> inner;
    multiply<9, 2>(tile<S::kChannels>(), from.pitch(), to, weights_, inner);
    __syncthreads();
    zero_halo(tile<2 * S::kChannels>(), to.height, to.width);
    write_inner(position, number, to, inner);
    add_second(position, number, to, y);
  }

  // What follows h(x) where the strided block is OFF: the tile of the next stage.
  template <class S>
  __device__ __forceinline__ void close_transition(const Pixels<S>& pixels, Stream<S>& y) {
    __syncthreads();
    zero_halo(tile<S::kChannels>(), pixels.height, pixels.width);
    if constexpr (!kPreact) {
      Sums<S> sums = y.load();
      change(sums, [](float v, int, int) { return relu(v); });
      write_tile(tile<S::kChannels>(), pixels, sums, [](float v, int, int) { return v; });
      y.store(sums);
    }
  }

  // y = h(x), from the tile: a strided 1x1 convolution, or every second pixel between zero
  // channels.
  template <class S>
  __device__ __forceinline__ void shortcut(int which, int number, const Pixels<S>& from,
                                           const Pixels<typename S::Next>& to,
                                           Stream<typename S::Next>& y) {
    constexpr int C = S::kChannels;
    Sums<typename S::Next> sums;
    if (plan_.shortcut_slices[0] > 0) {
      multiply<1, 2>(tile<C>(), from.pitch(), to, weights_, sums);
      if constexpr (!kPreact) {
        const Channels<typename S::Next> bias(vector(number, kShortcutBias));
        change(sums, [&](float v, int j, int k) { return v + bias.of(j, k); });
      }
      return y.store(sums);
    }
#pragma unroll
    for (int i = 0; i < S::Next::kTiles; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int place = to.place(i, k / 2), row = place / to.pitch() - 1,
                  column = place % to.pitch() - 1;
        if (place == 0) continue;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int c = S::Next::first_channel(j) + k % 2 - plan_.pad_before[which];
          const int pixel = (row * 2 + 1) * from.pitch() + column * 2 + 1;
          if (c >= 0 && c < C) sums.at[i][j][k] = Op::load(tile<C>().channel(pixel, c));
        }
      }
    }
    y.store(sums);
  }

  // Logits of the mean over all pixels. The classifier is 64 products a class, too few for tensor
  // cores.
  __device__ void head(const Pixels<Coarse>& pixels, Sums<Coarse> x) {
    using S = Coarse;
    if constexpr (kPreact) {
      const Channels<S> scale(vector(0, kNormScale)), shift(vector(0, kNormShift));
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
      for (int i = 0; i < S::kTiles * 2; ++i) {
        const int half = i % 2;
        if (pixels.place(i / 2, half) != 0) sum += x.at[i / 2][c / 2][half * 2 + c % 2];
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

template <class Op, bool kPreact, int kWidth, int kTiles>
__global__ void __launch_bounds__(kThreads, 1)
    net_eval_kernel(const __grid_constant__ NetEvalPlan plan) {
  NetEval<Op, kPreact, kWidth, kTiles>(plan).run();
}

}  // namespace pathnet
