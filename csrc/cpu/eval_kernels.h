// The kernels of stage_eval, written once for every instruction set. A file that includes this has
// first included eval_includes.h, chosen its instructions (#pragma GCC target) and defined
//   PATHNET_EVAL_KERNELS   name of the table that it defines
//   PATHNET_EVAL_PRODUCTS  how it computes 3x3 convolutions: Float32Products, or as it comes with
//   PATHNET_LANES          floats in one register
#include "convolve_direct.h"
#include "convolve_few.h"
#include "eval.h"
#include "eval_images.h"
#include "eval_masked.h"
#include "pixels.h"
#include "weights.h"

namespace pathnet {
namespace {

// Puts results into images: out = v, or out += scales * v, then ReLU; v behind its batch norm.
template <bool kAdd, bool kRelu>
struct Emit {
  const Image* out;
  const float *scale, *bias;  // of channels
  const float* scales;        // of images

  struct State {
    float *first, *at;
    int64_t row_stride;
    Vector scale, bias, factor;
  };
  PATHNET_INLINE State begin(int64_t image, int64_t block, int r) const {
    float* first = out[image].at(block, 0, 0) + r * kLanes;
    const int64_t channel = block * kBlock + r * kLanes;
    return {first,
            first,
            out[image].row_stride(),
            load(scale + channel),
            load(bias + channel),
            Vector{} + (kAdd ? scales[image] : 1.0f)};
  }
  PATHNET_INLINE void move(State& state, int64_t i, int64_t j) const {
    state.at = state.first + i * state.row_stride + j * kBlock;
  }
  PATHNET_INLINE void put(State& state, Vector y, int64_t i, int64_t j) const {
    float* to = state.at + i * state.row_stride + j * kBlock;
    y = y * state.scale + state.bias;
    if (kAdd) y = load(to) + state.factor * y;
    store(to, kRelu ? relu(y) : y);
  }
  PATHNET_INLINE void end(const State&, int64_t, int64_t, int) const {}
};

// 3x3 convolutions with products in float32.
struct Float32Products {
  static constexpr int64_t kFew =
      kLanes == 16 ? kFewTiles : 0;  // fewer registers cannot hold the sums
  static constexpr auto workspace_floats = pathnet::workspace_floats;

  static void pack(const WeightView& weight, const Taps& taps, const Placement& place,
                   int64_t block, float* packed) {
    transform_weight_block(weight, taps, place, block, packed);
  }
  template <typename Epilogue>
  static void convolve(const Image* in, const Image& out, int64_t images, const float* weights,
                       float* workspace, const Epilogue& epilogue, bool phases) {
    pathnet::convolve(in, out, images, weights, workspace, epilogue, NotAhead(), phases);
  }
};

using Products = PATHNET_EVAL_PRODUCTS;

template <bool kAdd, bool kRelu>
void convolve_into(const Conv& conv, const Image* in, const Image* out, int64_t images,
                   const float* scales, float* workspace) {
  const Emit<kAdd, kRelu> emit{out, conv.scale, conv.bias, scales};
  if (conv.is_direct())
    return convolve_directly(in, out[0], images, conv.in_channels, conv.weights, emit);
  if constexpr (Products::kFew > 0)
    if (conv.kernel == 3 && conv.weights == nullptr)
      return convolve_few(in, out[0], images, conv.view, workspace, emit);
  if (conv.kernel == 1)
    convolve_pixels(in, conv.stride, out[0], images, conv.weights, workspace, emit);
  else
    Products::convolve(in, out[0], images, conv.weights, workspace, emit, conv.reads_phases());
}

template <Cut kCut>
void convolve_cut(const Conv& conv, const Image* in, const Image* out, int64_t images,
                  const uint16_t* const* masks, float* workspace) {
  const EmitMasked<kCut> emit{out, masks};
  if (conv.is_direct())
    return convolve_directly(in, out[0], images, conv.in_channels, conv.weights, emit);
  Products::convolve(in, out[0], images, conv.weights, workspace, emit, false);
}

void convolve_masked(const Conv& conv, const Image* in, const Image* out, int64_t images,
                     const uint16_t* const* masks, Cut cut, float* workspace) {
  const auto into = cut == Cut::kResult ? convolve_cut<Cut::kResult>
                    : cut == Cut::kSum  ? convolve_cut<Cut::kSum>
                                        : convolve_cut<Cut::kSummand>;
  into(conv, in, out, images, masks, workspace);
}

void convolve_images(const Conv& conv, const Image* in, const Image* out, int64_t images,
                     const Epilogue& epilogue, float* workspace) {
  const bool add = epilogue.scales != nullptr;
  const auto into = add ? epilogue.relu ? convolve_into<true, true> : convolve_into<true, false>
                    : epilogue.relu ? convolve_into<false, true>
                                    : convolve_into<false, false>;
  into(conv, in, out, images, epilogue.scales, workspace);
}

int64_t conv_workspace_floats(const Conv& conv) {
  return conv.kernel == 1 ? pixel_workspace_floats(conv.in_blocks(), conv.out_blocks())
                          : Products::workspace_floats(conv.in_blocks(), conv.out_blocks());
}

void pack_conv(const Conv& conv, int64_t block, float* packed) {
  if (conv.kernel == 1) return pack_pixel_weights(conv.view, block, packed);
  if (conv.is_direct()) return pack_direct_weights(conv.view, block, packed);
  Placement place{0, conv.in_blocks(), 0, conv.out_blocks()};
  if (!conv.reads_phases()) return Products::pack(conv.view, kPlainTaps, place, block, packed);
  for (const Phase& phase : kPhases) {
    Products::pack(conv.view, phase_taps(phase.row, phase.column), place, block, packed);
    place.first_in += blocks_of(conv.in_channels);
  }
}

}  // namespace

extern const EvalKernels PATHNET_EVAL_KERNELS = {
    load_image,      store_image,     pack_conv, Products::kFew, conv_workspace_floats,
    convolve_images, convolve_masked, mask,      write_mask,     split_phases,
    affine_relu};

}  // namespace pathnet
