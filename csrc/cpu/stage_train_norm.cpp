#include "stage_train_norm.h"

#include <algorithm>
#include <cmath>

namespace pathnet::train {
namespace {

struct Moments {
  double mean, var;
};

Moments merge(const float* sums, int64_t images, int64_t pixels, int64_t padded, int64_t channel) {
  double count = 0.0, mean = 0.0, squares = 0.0;
  const double n = static_cast<double>(pixels);
  for (int64_t i = 0; i < images; ++i) {
    const float* own = sums + i * kSums * padded + channel;
    const double shift = own[0], sum = own[padded], square = own[2 * padded];
    const double difference = shift + sum / n - mean, total = count + n;
    squares += std::max(square - sum * sum / n, 0.0) + difference * difference * count * n / total;
    mean += difference * n / total;
    count = total;
  }
  return {mean, squares / count};
}

float* element(const Tensor& tensor, int64_t c) {
  return static_cast<float*>(tensor.data_ptr()) + c * tensor.stride(0);
}

void move(const Tensor& running, int64_t c, double momentum, double value) {
  float* at = element(running, c);
  *at = static_cast<float>((1.0 - momentum) * *at + momentum * value);
}

}  // namespace

void finish_norm(const Norm& norm, const float* sums, int64_t images, int64_t pixels,
                 const NormState& state) {
  const int64_t padded = round_up(norm.channels(), kBlock);
  std::fill(state.mean, state.mean + NormState::kRows * padded, 0.0f);
  const double count = static_cast<double>(images * pixels);
  for (int64_t c = 0; c < norm.channels(); ++c) {
    Moments moments{*element(norm.mean, c), *element(norm.var, c)};
    if (norm.batch_stats) {
      moments = merge(sums, images, pixels, padded, c);
      if (norm.update) {
        move(norm.mean, c, norm.momentum, moments.mean);
        move(norm.var, c, norm.momentum, moments.var * count / (count - 1.0));
      }
    }
    const double rstd = 1.0 / std::sqrt(moments.var + norm.eps);
    const double scale = *element(norm.weight, c) * rstd;
    state.mean[c] = static_cast<float>(moments.mean);
    state.rstd[c] = static_cast<float>(rstd);
    state.scale[c] = static_cast<float>(scale);
    state.shift[c] = static_cast<float>(*element(norm.bias, c) - moments.mean * scale);
  }
}

NormBackward norm_backward(const Norm& norm, const NormState& state, const float* sums,
                           int64_t images, int64_t pixels, float factor) {
  const int64_t channels = norm.channels(), padded = round_up(channels, kBlock);
  NormBackward result;
  for (auto* row : {&result.a, &result.b, &result.c}) row->resize(padded / kBlock);
  float *row_a = result.a[0].of, *row_b = result.b[0].of, *row_c = result.c[0].of;
  result.weight.resize(channels), result.bias.resize(channels);
  const double count = static_cast<double>(images * pixels);
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0.0, product = 0.0;
    for (int64_t i = 0; i < images; ++i) {
      sum += sums[(i * kSums + 1) * padded + c];
      product += sums[(i * kSums + 2) * padded + c];
    }
    const double rstd = state.rstd[c], a = double{factor} * state.scale[c];
    result.weight[c] = factor * rstd * product;
    result.bias[c] = factor * sum;
    row_a[c] = static_cast<float>(a);
    if (!norm.batch_stats) continue;  // its statistics do not depend on the batch
    const double b = -a * rstd * rstd * product / count;
    row_b[c] = static_cast<float>(b);
    row_c[c] = static_cast<float>(-a * sum / count - b * state.mean[c]);
  }
  return result;
}

}  // namespace pathnet::train
