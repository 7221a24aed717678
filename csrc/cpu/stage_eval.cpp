// stage_eval: a chain of gated residual blocks in evaluation, batch norm folded into the
// convolutions.
//
// Depth-first: each thread takes a group of images through all blocks before it takes the next, so
// that activations stay in its cache and the batch is read once and written once. A block that is
// OFF on an identity shortcut does nothing. An image's result depends on that image alone, so the
// bits depend neither on the groups nor on the number of threads.
#include "stage_eval.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <atomic>
#include <deque>

#include "eval_cascade.h"
#include "isa.h"
#include "layout.h"
#include "stage_pack.h"

namespace pathnet {
namespace {

void find_runs(Plan& plan, const Switches& switches, int64_t images) {
  for (size_t b = 0; b < plan.blocks.size(); ++b)
    for (int64_t n = 0; n < images && !plan.blocks[b].runs; ++n)
      plan.blocks[b].runs = switches.runs(n, b);
}

// The kernels whose products of 3x3 convolutions have this precision.
const EvalKernels& kernels_of(const std::string& precision) {
  check(precision == "float32" || precision == "bf16",
        "stage_eval: precision must be \"float32\" or \"bf16\", but it is \"", precision, "\".");
  if (precision == "float32") return eval_kernels();
  const EvalKernels* kernels = bf16_eval_kernels();
  check(kernels != nullptr,
        "stage_eval: precision=\"bf16\" needs AVX512-BF16 or AMX, but the kernels run on ",
        to_string(full_isa()), ". Use precision=\"float32\".");
  return *kernels;
}

}  // namespace

Tensor evaluate(Plan& plan, const Switches& switches, const Tensor& x) {
  const int64_t images = x.size(0);
  const std::array<int64_t, 4> sizes = {images, plan.out.channels, plan.out.height, plan.out.width};
  Tensor out = allocate_recycled(sizes, "stage_eval: the output", memory_format_of(x));
  if (images == 0) return out;

  find_runs(plan, switches, images);
  fold_norms(plan);
  const Shares shares = share_out(plan, images);
  if (shares.rereads()) pack_weights(plan);

  const int64_t floats = Cascade::floats(plan, shares), groups = shares.groups();
  static Keeper keeper;
  Lent memory(keeper, shares.workers * floats, "stage_eval: scratch memory");
  const float* x_data = x.const_data_ptr<float>();
  float *out_data = out.mutable_data_ptr<float>(), *memory_data = memory.data();
  const Cascade::Load load = [&](int64_t n, const Image& to) {
    plan.kernels->load(view(x_data, x, n), to);
  };
  std::atomic<int64_t> next{0};
  std::deque<Crew> crews;
  for (int64_t g = 0; g < groups; ++g) crews.emplace_back(shares.threads(g));
  torch::stable::parallel_for(0, shares.workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      Cascade cascade(plan, switches, shares, memory_data + worker * floats, load);
      int64_t g;
      while ((g = next++) < groups) {
        const Crew::Lead lead(crews[g]);
        const int64_t first = shares.starts[g], some = shares.starts[g + 1] - first;
        cascade.run(first, some, crews[g]);
        for (int64_t i = 0; i < some; ++i)
          plan.kernels->store(cascade.output(i), view(out_data, out, first + i));
      }
      if (shares.workers > groups) crews[g % groups].help(cascade.scratch());
    }
  });
  return out;
}

namespace {

Tensor stage_eval_cpu(const Tensor& x, const Tensor& gates, const Tensor& scales,
                      std::vector<Tensor> tensors, std::vector<int64_t> blocks,
                      std::vector<double> eps, std::string precision) {
  Plan plan = read_plan(x, tensors, blocks, eps);
  plan.kernels = &kernels_of(precision);
  const Switches switches(gates, scales, x.size(0), plan.blocks.size());
  return evaluate(plan, switches, x);
}

}  // namespace
}  // namespace pathnet

STABLE_TORCH_LIBRARY_IMPL(pathnet, CPU, m) {
  m.impl("stage_eval", TORCH_BOX(&pathnet::stage_eval_cpu));
}
