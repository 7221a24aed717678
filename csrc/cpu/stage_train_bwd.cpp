// stage_train_bwd: the path-restricted backward of stage_train_fwd.
//
// From the last block to the first, two passes over the batch a block: each reads the gradient of a
// convolution's output through the backward of its batch norm, and gives the gradients of the
// weights and of the input, masked by the ReLU before, with the sums that the next batch norm's
// backward needs. FORWARD blocks take part in nothing but the bits that cut the gradient on the
// shortcut.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "layout.h"
#include "stage_train_kept.h"
#include "stage_train_weights.h"

namespace pathnet::train {
namespace {

// What the caller asks for, and gets: one tensor for each True, in order.
class Gradients {
 public:
  Gradients(const std::vector<bool>& needs, int64_t blocks) : needs_(needs), blocks_(blocks) {
    check(static_cast<int64_t>(needs.size()) == 2 + 6 * blocks, "stage_train_bwd: needs must hold ",
          2 + 6 * blocks, " values for these blocks, got ", needs.size(), '.');
    of_.resize(needs.size());
  }
  bool needs_x() const { return needs_[kX]; }
  bool needs_skip() const { return needs_[kSkip]; }
  bool needs_weight(int64_t b, int conv) const { return needs_[weight(b, conv)]; }
  bool needs_norm(int64_t b, int norm) const {
    const int64_t at = 2 + 2 * blocks_ + 4 * b + 2 * norm;
    return needs_[at] || needs_[at + 1];
  }

  void set_x(Tensor gradient) { set(kX, std::move(gradient)); }
  void set_skip(Tensor gradient) { set(kSkip, std::move(gradient)); }
  void set_weight(int64_t b, int conv, Tensor gradient) {
    set(weight(b, conv), std::move(gradient));
  }
  void set_norm(int64_t b, int norm, const Norm& like, const NormBackward& from) {
    const int64_t at = 2 + 2 * blocks_ + 4 * b + 2 * norm;
    if (needs_[at]) set(at, to_tensor(from.weight, like.weight));
    if (needs_[at + 1]) set(at + 1, to_tensor(from.bias, like.bias));
  }

  std::vector<Tensor> list() {
    std::vector<Tensor> result;
    for (size_t i = 0; i < needs_.size(); ++i) {
      if (!needs_[i]) continue;
      check(of_[i].has_value(), "stage_train_bwd: needs[", i,
            "] is True, but the gates of these blocks give no such gradient.");
      result.push_back(*of_[i]);
    }
    return result;
  }

 private:
  static constexpr int64_t kX = 0, kSkip = 1;
  int64_t weight(int64_t b, int conv) const { return 2 + 2 * b + conv; }
  void set(int64_t at, Tensor gradient) { of_[at] = std::move(gradient); }
  static Tensor to_tensor(const std::vector<double>& values, const Tensor& like) {
    Tensor result = torch::stable::empty_like(like);
    for (size_t c = 0; c < values.size(); ++c)
      data(result)[c * result.stride(0)] = static_cast<float>(values[c]);
    return result;
  }

  const std::vector<bool>& needs_;
  int64_t blocks_;
  std::vector<std::optional<Tensor>> of_;
};

class Backward {
 public:
  Backward(const Plan& plan, const Kept& kept, bool has_skip, const Tensor& x, Gradients& gradients)
      : plan_(plan),
        kept_(kept),
        has_skip_(has_skip),
        x_(x),
        gradients_(gradients),
        pool_(plan.op, plan.images),
        workers_(plan.op, gradient_offset(plan) + weight_floats(plan)),
        transformed_(plan.op, weight_floats(plan)),
        weight_gradients_(plan),
        sums_(allocate({plan.images, kSums, widest(plan)}, std::string(plan.op) + ": sums")) {
    for (size_t b = 0; b < plan.blocks.size(); ++b)
      if (plan.blocks[b].trained()) trained_.push_back(b);
  }

  void run(const Tensor& grad_y) {
    g_ = pool_.take(plan_.out());
    to_batch(grad_y, plan_.out(), data(g_));
    if (!plan_.preact()) arrive();
    for (auto b = trained_.rbegin(); b != trained_.rend(); ++b)
      plan_.preact() ? run_preact(*b) : run_post(*b, b + 1 == trained_.rend() ? -1 : *(b + 1));
    plan_.preact() ? leave_preact() : leave_post();
  }

 private:
  // ---- post-activation: g_ is the gradient before the ReLU of the block at hand ----------------

  // Cuts the gradient of the last value where the run since the last trained block does not live.
  void arrive() {
    if (trained_.empty()) return;
    const int64_t b = trained_.back();
    BackwardConv pass;
    pass.in_extent = plan_.out();
    pass.out = data(g_);
    pass.skip = data(g_);
    join(pass, b);
    workers_.share(plan_.images, [&](int64_t n, float*) {
      clear_sums(sums_, n, pass.in_extent);
      train_kernels().arrive(pass, n);
    });
  }

  // What the gradient of block b's value meets before it is that of its sum.
  void join(BackwardConv& pass, int64_t b) {
    pass.alive = bits(kept_.blocks[b].alive);
    pass.value = data(kept_.blocks[b].u[1]);
    pass.mean = state(b, 1).mean;
    pass.sums = data(sums_);
  }

  void run_post(int64_t b, int64_t before) {
    const Block& block = plan_.blocks[b];
    const KeptBlock& kept = kept_.blocks[b];
    if (b == 0 && has_skip_) write_skip(g_, nullptr);
    NormBackward norm = finish(b, 1, block.scale);
    BackwardConv pass = pass_of<BackwardConv>(block, 1);
    pass.gradient = norm.gradient(data(g_), data(kept.u[1]));
    pass.in = data(kept.u[0]);
    pass.before = state(b, 0).activation();
    const Batch inner = mask(pass, pass.in, state(b, 0));
    convolve(pass, b, 1);

    norm = finish(b, 0, 1.0f);
    pass = pass_of<BackwardConv>(block, 0);
    pass.gradient = norm.gradient(data(inner), data(kept.u[0]));
    pass.in = data(kept.x);
    const bool skip = block.gate != Gate::kResidual && !(b == 0 && has_skip_);
    if (skip) pass.skip = data(g_);
    Batch next;
    if (before >= 0) {
      pass.arrival = Arrival::kJoined;
      join(pass, before);
    }
    if (before >= 0 || gradients_.needs_x() || (b > 0 && gradients_.needs_skip())) {
      next = pool_.take(block.in);
      pass.out = data(next);
    }
    convolve(pass, b, 0);
    g_ = next;
    if (b == 0 && has_skip_ && gradients_.needs_x()) write_x(g_, nullptr);
  }

  // A FORWARD run that comes first cuts the gradient on its way out.
  void leave_post() {
    if (!has_skip_) return write_x(g_, bits(kept_.alive));
    if (!plan_.blocks[0].trained()) write_skip(g_, bits(kept_.alive));
  }

  // ---- pre-activation: g_ is the gradient of the value behind the block at hand, to which that
  // through the branch of the block after it is still to be added --------------------------------

  void run_preact(int64_t b) {
    const Block& block = plan_.blocks[b];
    const KeptBlock& kept = kept_.blocks[b];
    BackwardConv pass = pass_of<BackwardConv>(block, 1);
    pass.factor = block.scale;
    if (branch_.has_value())
      pass_on(pass);
    else
      pass.gradient.g = data(g_);
    const Batch merged = branch_.has_value() ? pool_.take(block.out) : g_;
    if (branch_.has_value()) pass.merged = data(merged);
    pass.in = data(kept.u[0]);
    pass.before = state(b, 1).activation();
    const Batch inner = mask(pass, pass.in, state(b, 1));
    convolve(pass, b, 1);
    g_ = merged;

    const NormBackward norm = finish(b, 1, 1.0f);
    pass = pass_of<BackwardConv>(block, 0);
    pass.gradient = norm.gradient(data(inner), data(kept.u[0]));
    pass.in = data(kept.x);
    pass.before = state(b, 0).activation();
    const bool first = b == trained_.front();
    Batch outer;
    if (!first || gradients_.needs_x() || gradients_.needs_skip() || gradients_.needs_norm(b, 0))
      outer = mask(pass, pass.in, state(b, 0));
    convolve(pass, b, 0);
    if (outer == nullptr) return;
    branch_ = Branch{outer, kept.x, finish(b, 0, 1.0f), block.gate == Gate::kResidual};
  }

  // Lets the pass read the whole gradient of a block's value.
  void pass_on(BackwardConv& pass) const {
    pass.gradient = branch_->norm.gradient(data(branch_->g), data(branch_->x));
    if (!branch_->cut) pass.passed_on = data(g_);
  }

  void leave_preact() {
    const bool through_f = has_skip_ && !trained_.empty() && trained_.front() == 0;
    if (through_f) {
      write_skip(g_, nullptr);
      if (branch_.has_value()) branch_->cut = true;
    }
    const bool to_skip = has_skip_ && !through_f;
    if (!(to_skip ? gradients_.needs_skip() : gradients_.needs_x())) return;
    const Batch whole = branch_.has_value() ? merge_branch() : g_;
    to_skip ? write_skip(whole, nullptr) : write_x(whole, nullptr);
  }

  Batch merge_branch() {
    BackwardConv pass;
    pass.out_extent = plan_.blocks[trained_.front()].in;
    pass_on(pass);
    const Batch merged = pool_.take(pass.out_extent);
    pass.merged = data(merged);
    workers_.share(plan_.images, [&](int64_t n, float*) { train_kernels().pass_on(pass, n); });
    return merged;
  }

  // ---- passes ----------------------------------------------------------------------------------

  // The gradient that the pass gives is cut where ReLU(norm(value)) is zero.
  Batch mask(BackwardConv& pass, const float* value, const NormState& norm) {
    const Batch out = pool_.take(pass.in_extent);
    pass.arrival = Arrival::kMasked;
    pass.out = data(out);
    pass.value = value;
    pass.value_before = norm.activation();
    pass.mean = norm.mean;
    pass.sums = data(sums_);
    return out;
  }

  void convolve(BackwardConv& pass, int64_t b, int conv) {
    const Block& block = plan_.blocks[b];
    const bool weight_gradient = gradients_.needs_weight(b, conv);
    if (pass.out != nullptr)
      pass.weights = transformed_.backward(block.weights[conv], pass.stride);
    else if (!weight_gradient)
      return;
    const Chunks chunks(plan_.images, pass.out_extent);
    workers_.share(chunks.count, [&](int64_t chunk, float* workspace) {
      run_chunk(pass, chunks, chunk, weight_gradient, workspace);
    });
    if (weight_gradient)
      gradients_.set_weight(b, conv,
                            weight_gradients_.merge(block.weights[conv], pass, chunks.count));
  }

  void run_chunk(BackwardConv pass, const Chunks& chunks, int64_t chunk, bool weight_gradient,
                 float* workspace) {
    const int64_t end = std::min(plan_.images, (chunk + 1) * chunks.images);
    const int64_t in = pass.stride * pass.stride * pass.in_extent.channels();
    const int64_t out = pass.out_extent.channels();
    if (weight_gradient) pass.weight_gradient = workspace + gradient_offset(plan_);
    for (int64_t first = chunk * chunks.images; first < end; first += chunks.group) {
      const int64_t count = std::min(chunks.group, end - first);
      for (int64_t n = first; n < first + count && pass.sums != nullptr; ++n)
        clear_sums(sums_, n, pass.in_extent);
      train_kernels().backward_conv(pass, first, count, plan_.images, workspace);
      pass.fresh = false;
    }
    if (weight_gradient)
      train_kernels().finish_weight_gradient(pass.weight_gradient, in, out,
                                             weight_gradients_.part(chunk, pass));
  }

  static int64_t gradient_offset(const Plan& plan) {
    return round_up(workspace_floats(plan), kBlock);
  }

  NormBackward finish(int64_t b, int norm, float factor) {
    const Block& block = plan_.blocks[b];
    const Extent& extent = extent_of(block, norm);
    NormBackward result = norm_backward(block.norms[norm], state(b, norm), data(sums_),
                                        plan_.images, extent.pixels(), factor);
    gradients_.set_norm(b, norm, block.norms[norm], result);
    return result;
  }

  NormState state(int64_t b, int norm) const { return norm_state(plan_, kept_, b, norm); }

  void write_x(const Batch& gradient, const uint16_t* alive) {
    if (!gradients_.needs_x()) return;
    Tensor result = allocate({x_.size(0), x_.size(1), x_.size(2), x_.size(3)},
                             "stage_train_bwd: the gradient of x", memory_format_of(x_));
    from_batch(data(gradient), plan_.in(), alive, result);
    gradients_.set_x(result);
  }

  void write_skip(const Batch& gradient, const uint16_t* alive) {
    if (!gradients_.needs_skip()) return;
    const Block& block = plan_.blocks[0];
    Tensor result =
        allocate({plan_.images, block.weights[1].size(0), block.out.height, block.out.width},
                 "stage_train_bwd: the gradient of skip", memory_format_of(x_));
    from_batch(data(gradient), block.out, alive, result);
    gradients_.set_skip(result);
  }

  // What came through the branch of a pre-activation block, before the backward of its first norm.
  struct Branch {
    Batch g, x;
    NormBackward norm;
    bool cut;  // RESIDUAL: nothing passes on the shortcut
  };

  const Plan& plan_;
  const Kept& kept_;
  bool has_skip_;  // x then gets a gradient through f alone
  const Tensor& x_;
  Gradients& gradients_;
  Pool pool_;  // before those who hold its batches
  Workers workers_;
  TransformedWeights transformed_;
  WeightGradients weight_gradients_;
  Tensor sums_;
  std::vector<int64_t> trained_;  // the blocks whose f passes a gradient
  Batch g_;
  std::optional<Branch> branch_;
};

std::vector<Tensor> stage_train_bwd_cpu(const Tensor& grad_y, const Tensor& x,
                                        std::vector<Tensor> saved, std::vector<Tensor> weights,
                                        std::vector<Tensor> norms, std::vector<Tensor> running,
                                        std::vector<int64_t> blocks, std::vector<double> scales,
                                        std::vector<bool> norm_flags,
                                        std::vector<double> norm_constants, bool has_skip,
                                        std::vector<bool> needs) {
  const Plan plan =
      read_plan("stage_train_bwd",
                {x, weights, norms, running, blocks, scales, norm_flags, norm_constants}, has_skip);
  check_cpu(grad_y, ScalarType::Float, "stage_train_bwd: grad_y");
  check_shape(grad_y, {plan.images, plan.out_channels(), plan.out().height, plan.out().width},
              "stage_train_bwd: grad_y");
  const Kept kept = from_list(plan, saved);
  Gradients gradients(needs, plan.blocks.size());
  Backward(plan, kept, has_skip, x, gradients).run(grad_y);
  return gradients.list();
}

}  // namespace
}  // namespace pathnet::train

STABLE_TORCH_LIBRARY_IMPL(pathnet, CPU, m) {
  m.impl("stage_train_bwd", TORCH_BOX(&pathnet::train::stage_train_bwd_cpu));
}
