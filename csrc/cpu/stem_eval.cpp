// stem_eval: the stem of an ImageNet net in evaluation, 7x7 convolution of stride 2, batch norm,
// ReLU and 3x3 max pooling of stride 2, without writing what stands between.
//
// A thread takes some rows of pooled pixels of one image. It copies the rows of the image that
// these see with a border of zeros, and keeps the last three rows of the convolution.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>

#include "kept.h"
#include "stem_kernels.h"

namespace pathnet {
namespace {

constexpr int64_t kKernel = StemConv::kKernel, kIn = StemConv::kIn, kPad = kKernel / 2;
constexpr int64_t kChannels = 32;  // the kernels take multiples of so many

constexpr int64_t convolved(int64_t side) { return (side - 1) / StemConv::kStride + 1; }

void check_stem(const Tensor& x, const Tensor& weight, const std::vector<Tensor>& norm) {
  check_cpu(x, ScalarType::Float, "stem_eval: x");
  check(x.dim() == 4 && x.size(1) == kIn && x.size(2) > 0 && x.size(3) > 0,
        "stem_eval: x must have shape [N, 3, H, W], but it has ", to_string(x.sizes()), '.');
  check_cpu(weight, ScalarType::Float, "stem_eval: weight");
  check(weight.dim() == 4 && weight.size(0) > 0 && weight.size(0) % kChannels == 0,
        "stem_eval: weight must have a multiple of ", kChannels,
        " output channels, but its shape is ", to_string(weight.sizes()), '.');
  check_shape(weight, {weight.size(0), kIn, kKernel, kKernel}, "stem_eval: weight");
  check(norm.size() == 4, "stem_eval: norm must hold weight, bias, mean and variance, got ",
        norm.size(), " tensors.");
  for (const Tensor& tensor : norm) {
    check_cpu(tensor, ScalarType::Float, "stem_eval: a tensor of norm");
    check_shape(tensor, {weight.size(0)}, "stem_eval: a tensor of norm");
  }
}

// Weights, scale and bias as the kernels read them, one behind the other.
Tensor pack_stem(const Tensor& weight, const std::vector<Tensor>& norm, double eps) {
  const int64_t channels = weight.size(0);
  const Tensor packed = allocate({kKernel * kKernel * kIn + 2, channels}, "stem_eval: weights");
  const float* from = weight.const_data_ptr<float>();
  float* to = packed.mutable_data_ptr<float>();
  for (int64_t i = 0; i < kKernel; ++i)
    for (int64_t j = 0; j < kKernel; ++j)
      for (int64_t c = 0; c < kIn; ++c)
        for (int64_t k = 0; k < channels; ++k)
          *to++ = from[k * weight.stride(0) + c * weight.stride(1) + i * weight.stride(2) +
                       j * weight.stride(3)];
  const auto at = [&](int part, int64_t k) -> double {
    return norm[part].const_data_ptr<float>()[k * norm[part].stride(0)];
  };
  for (int64_t k = 0; k < channels; ++k) {
    const double factor = at(0, k) / std::sqrt(at(3, k) + eps);
    to[k] = static_cast<float>(factor);
    to[channels + k] = static_cast<float>(at(1, k) - at(2, k) * factor);
  }
  return packed;
}

// One thread's memory: rows of an image with a border of zeros, and three rows of the convolution.
class StemRows {
 public:
  // What `pooled_rows` rows of the output need.
  static int64_t floats(const StemConv& conv, int64_t pooled_rows) {
    const int64_t convolved_rows = 2 * pooled_rows + 1;
    return round_up((2 * convolved_rows + kKernel) * conv.row_floats + kSlack, kBlock) +
           kWindow * row_of(conv);
  }

  StemRows(const StemConv& conv, const Tensor& x, float* memory)
      : conv_(conv), x_(x), height_(convolved(x.size(2))), ring_(memory) {
    image_ = memory + kWindow * row_of(conv);
  }

  // Rows first ... last - 1 of the output of image n, each of `y_row` floats.
  void run(int64_t n, int64_t first, int64_t last, float* y, int64_t y_row) {
    int64_t next = std::max<int64_t>(0, 2 * first - 1);
    const int64_t top = 2 * next - kPad, end = std::min(height_, 2 * last);
    copy(n, top, 2 * (end - 1) + kPad + 1);
    for (int64_t i = first; i < last; ++i, y += y_row) {
      const int64_t from = std::max<int64_t>(0, 2 * i - 1), to = std::min(height_, 2 * i + 2);
      for (; next < to; ++next)
        stem_kernels().convolve_row(conv_, image_ + (2 * next - kPad - top) * conv_.row_floats,
                                    convolved_row(next));
      std::array<const float*, kWindow> rows;
      for (int64_t r = from; r < to; ++r) rows[r - from] = convolved_row(r);
      stem_kernels().pool_row(conv_, rows.data(), to - from, y);
    }
  }

 private:
  static constexpr int64_t kSlack = StemConv::kMostPixels * StemConv::kStride * kIn;

  static int64_t row_of(const StemConv& conv) {
    return std::max(conv.width, StemConv::kMostPixels) * conv.channels;
  }
  float* convolved_row(int64_t r) const { return ring_ + r % kWindow * row_of(conv_); }

  // Rows from ... to - 1 of image n, zeros around it.
  void copy(int64_t n, int64_t from, int64_t to) const {
    std::fill_n(image_, (to - from) * conv_.row_floats + kSlack, 0.0f);
    for (int64_t i = std::max<int64_t>(0, from); i < std::min(x_.size(2), to); ++i)
      copy_row(x_.const_data_ptr<float>() + n * x_.stride(0) + i * x_.stride(2),
               image_ + (i - from) * conv_.row_floats + kPad * kIn);
  }
  void copy_row(const float* from, float* to) const {
    const int64_t width = x_.size(3), column = x_.stride(3), channel = x_.stride(1);
    if (channel == 1 && column == kIn) {
      std::copy_n(from, width * kIn, to);
      return;
    }
    for (int64_t j = 0; j < width; ++j)
      for (int64_t c = 0; c < kIn; ++c) to[j * kIn + c] = from[j * column + c * channel];
  }

  const StemConv& conv_;
  const Tensor& x_;
  int64_t height_;
  float *ring_, *image_;
};

Tensor stem_eval_cpu(const Tensor& x, const Tensor& weight, std::vector<Tensor> norm, double eps) {
  check_stem(x, weight, norm);
  const int64_t images = x.size(0), channels = weight.size(0), width = convolved(x.size(3));
  const int64_t h = pooled(convolved(x.size(2))), w = pooled(width);
  const std::array<int64_t, 4> sizes = {images, channels, h, w};
  Tensor y = allocate_recycled(sizes, "stem_eval: the output",
                               torch::headeronly::MemoryFormat::ChannelsLast);
  if (images == 0) return y;

  const Tensor packed = pack_stem(weight, norm, eps);
  StemConv conv;
  conv.width = width, conv.channels = channels;
  conv.row_floats = (x.size(3) + 2 * kPad) * kIn;
  conv.weights = packed.const_data_ptr<float>();
  conv.scale = conv.weights + kKernel * kKernel * kIn * channels;
  conv.bias = conv.scale + channels;

  const int64_t threads = torch::stable::get_num_threads();
  const int64_t bands = images < threads ? std::min(h, divide_up(threads, images)) : 1;
  const int64_t rows = divide_up(h, bands), parts = images * bands;
  const int64_t workers = std::min(threads, parts), floats = StemRows::floats(conv, rows);
  static Keeper keeper;
  Lent memory(keeper, workers * floats, "stem_eval: scratch memory");
  float *y_data = y.mutable_data_ptr<float>(), *memory_data = memory.data();
  std::atomic<int64_t> next_part{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      StemRows stem(conv, x, memory_data + worker * floats);
      for (int64_t part; (part = next_part++) < parts;) {
        const int64_t n = part / bands, first = std::min(h, part % bands * rows);
        stem.run(n, first, std::min(h, first + rows), y_data + (n * h + first) * w * channels,
                 w * channels);
      }
    }
  });
  return y;
}

}  // namespace
}  // namespace pathnet

STABLE_TORCH_LIBRARY_IMPL(pathnet, CPU, m) {
  m.impl("stem_eval", TORCH_BOX(&pathnet::stem_eval_cpu));
}
