// stage_eval: a chain of gated residual blocks in evaluation, batch norm folded into the
// convolutions.
//
// Depth-first: each thread takes a group of images through all blocks before it takes the next, so
// that activations stay in its cache and the batch is read once and written once. A block that is
// OFF on an identity shortcut does nothing. An image's result depends on that image alone, so the
// bits depend neither on the groups nor on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <deque>

#include "eval_group.h"
#include "isa.h"
#include "stage_pack.h"

namespace pathnet {
namespace {

// The rule of Tensor.suggest_memory_format for four dimensions.
bool suggests_channels_last(const Tensor& x) {
  int64_t least = 0;
  if (x.stride(1) == 0) return false;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (x.size(d) == 0 || x.stride(d) < least) return false;
    if (d == 0 && least == x.stride(1)) return false;  // [N, 1, 1, 1] and the like: contiguous
    least = x.stride(d) * std::max<int64_t>(x.size(d), 1);
  }
  return true;
}

template <typename T>
View<T> view(T* data, const Tensor& x, int64_t n) {
  return {data + n * x.stride(0), x.size(1), x.stride(1), x.stride(2), x.stride(3)};
}

// How the batch is shared out. Workers beyond the number of groups help with the convolutions.
struct Groups {
  int64_t workers, count, images;  // of one group, the last may be smaller

  // That compute group g: its leader, and every count-th of the workers that have none.
  int64_t threads(int64_t g) const {
    return std::max<int64_t>(1, workers / count + (g < workers % count));
  }
};

// Tiles that should share one reading of weights which are too large for the second cache, and
// where threads pack for themselves, their packing.
int64_t tiles_wanted(const ConvNorm& step) {
  constexpr int64_t kCached = 256 << 10, kTiles = 256;
  return step.conv.weight_floats() > kCached ? kTiles : 1;
}

// Of one image.
int64_t multiply_adds(Plan& plan) {
  int64_t result = 0;
  for (const Block& block : plan.blocks) {
    const int64_t tiles = divide_up(block.out.height, 4) * divide_up(block.out.width, 4);
    if (block.runs)
      for (const ConvNorm& step : block.branch) result += step.conv.weight_floats() * tiles;
  }
  return result;
}

// As many images as keep a block's input and inner value in the second cache, or as share the
// reading of large weights; but so few that every thread has work.
Groups share_out(Plan& plan, int64_t images) {
  constexpr int64_t kCache = 200 << 10;  // floats, of the second cache's 512 Ki or more
  constexpr int64_t kAlone = 400 << 10;  // where a thread then has one group, and packs for itself
  constexpr int64_t kWorthSharing = 4 << 20;  // multiply-adds: to call threads takes as long
  int64_t each = std::max<int64_t>(1, kCache / (2 * plan.image_floats));
  for (const Block& block : plan.blocks) {
    const int64_t tiles = divide_up(block.out.height, 4) * divide_up(block.out.width, 4);
    for (const ConvNorm& step : block.branch)
      each = std::max(each, divide_up(tiles_wanted(step), tiles));
  }
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t fair = divide_up(images, threads);
  if (fair * 2 * plan.image_floats <= kAlone) each = std::max(each, fair);
  const int64_t count = std::max(divide_up(images, each), std::min(images, threads));
  each = divide_up(images, count);
  const int64_t groups = divide_up(images, each);
  const bool share = groups < threads && multiply_adds(plan) * each > kWorthSharing;
  return {share ? threads : std::min(groups, threads), groups, each};
}

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

Tensor stage_eval_cpu(const Tensor& x, const Tensor& gates, const Tensor& scales,
                      std::vector<Tensor> tensors, std::vector<int64_t> blocks,
                      std::vector<double> eps, std::string precision) {
  Plan plan = read_plan(x, tensors, blocks, eps);
  plan.kernels = &kernels_of(precision);
  const int64_t images = x.size(0), count = plan.blocks.size();
  const Switches switches(gates, scales, images, count);

  const auto format = suggests_channels_last(x) ? torch::headeronly::MemoryFormat::ChannelsLast
                                                : torch::headeronly::MemoryFormat::Contiguous;
  const std::array<int64_t, 4> sizes = {images, plan.out.channels, plan.out.height, plan.out.width};
  Tensor out = allocate_recycled(sizes, "stage_eval: the output", format);
  if (images == 0) return out;

  find_runs(plan, switches, images);
  fold_norms(plan);
  const Groups groups = share_out(plan, images);
  if (groups.count > groups.workers) pack_weights(plan);  // else nobody would read them twice

  const int64_t floats = Group::floats(plan, groups.images);
  static Keeper keeper;
  Lent memory(keeper, groups.workers * floats, "stage_eval: scratch memory");
  const float* x_data = x.const_data_ptr<float>();
  float *out_data = out.mutable_data_ptr<float>(), *memory_data = memory.data();
  std::atomic<int64_t> next{0};
  std::deque<Crew> crews;
  for (int64_t g = 0; g < groups.count; ++g) crews.emplace_back(groups.threads(g));
  torch::stable::parallel_for(0, groups.workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      float* own = memory_data + worker * floats;
      Group group(plan, switches, groups.images, own);
      int64_t g;
      while ((g = next++) < groups.count) {
        const Crew::Lead lead(crews[g]);
        const int64_t first = g * groups.images, some = std::min(groups.images, images - first);
        for (int64_t i = 0; i < some; ++i)
          plan.kernels->load(view(x_data, x, first + i), group.input(i));
        group.run(first, some, crews[g]);
        for (int64_t i = 0; i < some; ++i)
          plan.kernels->store(group.output(i), view(out_data, out, first + i));
      }
      if (groups.workers > groups.count) crews[g % groups.count].help(own);
    }
  });
  return out;
}

}  // namespace
}  // namespace pathnet

STABLE_TORCH_LIBRARY_IMPL(pathnet, CPU, m) {
  m.impl("stage_eval", TORCH_BOX(&pathnet::stage_eval_cpu));
}
