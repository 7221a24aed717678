#include "layout.h"
#include "recycled.h"
#include "stage_train_bwd.h"

namespace pathnet::train {
namespace {

// A thread's sums of a weight gradient stand behind its workspace.
int64_t sums_offset(const Plan& plan) { return round_up(workspace_floats(plan), kBlock); }

}  // namespace

BackwardPasses::BackwardPasses(const BackwardCall& call)
    : plan_(call.plan),
      kept_(call.kept),
      other_shortcut_(call.has_skip || call.plan.projection.has_value()),
      x_(call.x),
      grad_y_(call.grad_y),
      gradients_(call.gradients),
      pool_(plan_.op, plan_.images),
      workers_(plan_.op, sums_offset(plan_) + WeightGradients::own_floats(plan_)),
      sums_(allocate({plan_.images, kSums, widest(plan_)}, std::string(plan_.op) + ": sums")),
      weights_(plan_),
      weight_gradients_(plan_) {
  for (size_t b = 0; b < plan_.blocks.size(); ++b)
    if (plan_.blocks[b].trained()) trained_.push_back(b);
  g_ = pool_.take(plan_.out());
  to_batch(plan_, grad_y_, plan_.out(), data(g_));
}

BackwardConv BackwardPasses::descend(int64_t b, int64_t conv, Batch& g, NormBackward& norm) {
  for (;; --conv) {
    BackwardConv pass = pass_of<BackwardConv>(plan_.blocks[b].convs[conv]);
    pass.gradient = norm.gradient(data(g), data(kept_.blocks[b].u[conv]));
    if (conv == 0) return pass;
    g = through(pass, b, conv);
    norm = finish(b, plan_.blocks[b].norm_before(conv));
  }
}

Batch BackwardPasses::through(BackwardConv& pass, int64_t b, int64_t conv) {
  const NormState norm = state(b, plan_.blocks[b].norm_before(conv));
  pass.in = data(kept_.blocks[b].u[conv - 1]);
  pass.before = norm.activation();
  const Batch inner = mask(pass, pass.in, norm);
  convolve(pass, b, conv);
  return inner;
}

Batch BackwardPasses::mask(BackwardConv& pass, const float* value, const NormState& norm) {
  const Batch out = pool_.take(pass.in_extent);
  pass.arrival = Arrival::kMasked;
  pass.out = data(out);
  pass.value = value;
  pass.value_before = norm.activation();
  pass.mean = norm.mean;
  pass.sums = data(sums_);
  return out;
}

void BackwardPasses::convolve(BackwardConv& pass, int64_t b, int64_t i) {
  const Block& block = plan_.branch(b);
  const Conv& conv = block.convs[i];
  const bool weight_gradient = gradients_.needs_weight(block, i);
  if (pass.out != nullptr)
    pass.weights = weights_.backward(conv);
  else if (!weight_gradient)
    return;
  const Chunks chunks(plan_.images, conv.out);
  workers_.share(chunks.count, [&](int64_t chunk, float* workspace) {
    BackwardConv own = pass;
    if (weight_gradient)
      own.weight_gradient = weight_gradients_.sums(conv, chunk, workspace + sums_offset(plan_));
    run_chunk(own, conv, chunks, chunk, workspace);
  });
  if (weight_gradient) gradients_.set_weight(block, i, weight_gradients_.merge(conv, chunks.count));
}

void BackwardPasses::run_chunk(BackwardConv pass, const Conv& conv, const Chunks& chunks,
                               int64_t chunk, float* workspace) {
  const int64_t end = std::min(plan_.images, (chunk + 1) * chunks.images);
  for (int64_t first = chunk * chunks.images; first < end; first += chunks.group) {
    const int64_t count = std::min(chunks.group, end - first);
    for (int64_t n = first; n < first + count && pass.sums != nullptr; ++n)
      clear_sums(pass.sums, n, pass.in_extent);
    train_kernels().backward_conv(pass, first, count, plan_.images, workspace);
    pass.fresh = false;
  }
  if (pass.weight_gradient != nullptr) weight_gradients_.finish(conv, chunk, pass.weight_gradient);
}

NormBackward BackwardPasses::finish(int64_t b, int64_t norm, const float* multipliers) {
  const Block& block = plan_.branch(b);
  NormBackward result = norm_backward(block.norms[norm], state(b, norm), data(sums_), plan_.images,
                                      block.extent_of(norm).pixels(), multipliers);
  gradients_.set_norm(block, norm, result);
  return result;
}

bool BackwardPasses::projects_back() const {
  if (!plan_.projection.has_value() || !plan_.projection->trained()) return false;
  const Block& projection = *plan_.projection;
  return gradients_.needs_x() || gradients_.needs_weight(projection, 0) ||
         (!projection.norms.empty() && gradients_.needs_norm(projection, 0));
}

void BackwardPasses::project(const NormGradient& gradient, Batch& through_f) {
  BackwardConv pass = pass_of<BackwardConv>(plan_.projection->convs[0]);
  pass.gradient = gradient;
  pass.in = data(kept_.blocks[0].x);
  if (gradients_.needs_x()) {
    if (through_f == nullptr) through_f = zeros(plan_.in());
    pass.out = data(through_f);
    pass.skip = pass.out;
  }
  convolve(pass, plan_.size(), 0);
}

Batch BackwardPasses::zeros(const Extent& extent) {
  const Batch batch = pool_.take(extent);
  workers_.share(plan_.images, [&](int64_t n, float*) {
    std::fill_n(data(batch) + n * extent.floats(), extent.floats(), 0.0f);
  });
  return batch;
}

void BackwardPasses::write_x(const Batch& gradient, const uint16_t* alive) {
  if (!gradients_.needs_x()) return;
  Tensor result = allocate_recycled({x_.size(0), x_.size(1), x_.size(2), x_.size(3)},
                                    "stage_train_bwd: the gradient of x", memory_format_of(x_));
  from_batch(plan_, data(gradient), plan_.in(), alive, result);
  pass_others(plan_, grad_y_, result);
  gradients_.set_x(result);
}

void BackwardPasses::write_skip(const Batch& gradient, const uint16_t* alive) {
  if (!gradients_.needs_skip()) return;
  const Block& block = plan_.blocks[0];
  Tensor result =
      allocate_recycled({plan_.images, block.out_channels(), block.out().height, block.out().width},
                        "stage_train_bwd: the gradient of skip", memory_format_of(x_));
  from_batch(plan_, data(gradient), block.out(), alive, result);
  gradients_.set_skip(result);
}

}  // namespace pathnet::train
