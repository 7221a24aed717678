#include "stage_train_norm.h"

#include <algorithm>
#include <cmath>

namespace pathnet::train {
namespace {

// The values of a batch norm's tensor, asked once for where they stand.
struct PerChannel {
  float* data;
  int64_t stride;
  explicit PerChannel(const Tensor& tensor)
      : data(static_cast<float*>(tensor.data_ptr())), stride(tensor.stride(0)) {}
  float& operator[](int64_t channel) const { return data[channel * stride]; }
};

struct Moments {
  std::vector<double> mean, var;
};

Moments running(const Norm& norm) {
  const PerChannel mean(norm.mean), var(norm.var);
  Moments moments{std::vector<double>(norm.channels()), std::vector<double>(norm.channels())};
  for (int64_t c = 0; c < norm.channels(); ++c) moments.mean[c] = mean[c], moments.var[c] = var[c];
  return moments;
}

Moments merge(const float* sums, int64_t images, int64_t pixels, int64_t padded) {
  Moments moments{std::vector<double>(padded), std::vector<double>(padded)};
  double *mean = moments.mean.data(), *squares = moments.var.data();
  const double n = static_cast<double>(pixels), all = n * static_cast<double>(images);
  for (int64_t i = 0; i < images; ++i, sums += kSums * padded) {
    const float *shift = sums, *sum = sums + padded, *square = sums + 2 * padded;
    const double count = n * static_cast<double>(i), part = n / (count + n);
    for (int64_t c = 0; c < padded; ++c) {
      const double own = sum[c] / n, difference = shift[c] + own - mean[c];
      squares[c] +=
          std::max(square[c] - sum[c] * own, 0.0) + difference * difference * count * part;
      mean[c] += difference * part;
    }
  }
  for (double& square : moments.var) square /= all;
  return moments;
}

void move(const Norm& norm, const Moments& moments, double count) {
  const PerChannel mean(norm.mean), var(norm.var);
  const auto towards = [&](float& at, double value) {
    at = static_cast<float>((1.0 - norm.momentum) * at + norm.momentum * value);
  };
  for (int64_t c = 0; c < norm.channels(); ++c) {
    towards(mean[c], moments.mean[c]);
    towards(var[c], moments.var[c] * count / (count - 1.0));
  }
}

}  // namespace

void finish_norm(const Norm& norm, const float* sums, int64_t images, int64_t pixels,
                 const NormState& state) {
  const int64_t padded = round_up(norm.channels(), kBlock);
  std::fill(state.mean, state.mean + NormState::kRows * padded, 0.0f);
  const Moments moments = norm.batch_stats ? merge(sums, images, pixels, padded) : running(norm);
  if (norm.batch_stats && norm.update) move(norm, moments, static_cast<double>(images * pixels));
  const PerChannel weight(norm.weight), bias(norm.bias);
  for (int64_t c = 0; c < norm.channels(); ++c) {
    const double rstd = 1.0 / std::sqrt(moments.var[c] + norm.eps), scale = weight[c] * rstd;
    state.mean[c] = static_cast<float>(moments.mean[c]);
    state.rstd[c] = static_cast<float>(rstd);
    state.scale[c] = static_cast<float>(scale);
    state.shift[c] = static_cast<float>(bias[c] - moments.mean[c] * scale);
  }
}

NormBackward norm_backward(const Norm& norm, const NormState& state, const float* sums,
                           int64_t images, int64_t pixels, const float* multipliers) {
  const int64_t channels = norm.channels(), padded = round_up(channels, kBlock);
  NormBackward result;
  result.multipliers = multipliers;
  for (auto* row : {&result.a, &result.b, &result.c}) row->resize(padded / kBlock);
  float *row_a = result.a[0].of, *row_b = result.b[0].of, *row_c = result.c[0].of;
  std::vector<double>&products = result.weight, &totals = result.bias;
  products.resize(channels), totals.resize(channels);
  for (int64_t i = 0; i < images; ++i, sums += kSums * padded) {
    const double multiplier = multiplier_of(multipliers, i);
    for (int64_t c = 0; c < channels; ++c) {
      totals[c] += multiplier * sums[padded + c];
      products[c] += multiplier * sums[2 * padded + c];
    }
  }
  const double count = static_cast<double>(images * pixels);
  for (int64_t c = 0; c < channels; ++c) {
    const double sum = totals[c], product = products[c];
    const double rstd = state.rstd[c], a = state.scale[c];
    result.weight[c] = rstd * product;
    result.bias[c] = sum;
    row_a[c] = state.scale[c];
    if (!norm.batch_stats) continue;  // its statistics do not depend on the batch
    const double b = -a * rstd * rstd * product / count;
    row_b[c] = static_cast<float>(b);
    row_c[c] = static_cast<float>(-a * sum / count - b * state.mean[c]);
  }
  return result;
}

}  // namespace pathnet::train
