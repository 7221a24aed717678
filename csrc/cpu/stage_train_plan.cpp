#include "stage_train_plan.h"

namespace pathnet::train {
namespace {

constexpr int64_t kMaxSide = int64_t{1} << 15;  // of height, width and channels
constexpr int64_t kMaxFloats = int64_t{1} << 40;

// How the op's `blocks` number the forms, and the kernels of the convolutions in each.
struct Form {
  bool preact;
  std::vector<int64_t> kernels;
};
const Form kForms[] = {
    {false, {3, 3}},     // basic
    {true, {3, 3}},      // pre-activation
    {false, {1, 3, 1}},  // bottleneck
    {true, {1, 3, 1}},   // pre-activation bottleneck
};
constexpr int64_t kProjection = std::size(kForms);  // behind the blocks

void check_count(const char* op, const char* name, size_t count, size_t wanted) {
  check(count == wanted, op, ": ", name, " must hold ", wanted, " values for these blocks, got ",
        count, '.');
}

class Reader {
 public:
  Reader(const char* op, const Arguments& arguments) : op_(op), from_(arguments) {}

  Tensor weight(int64_t in_channels, int64_t kernel) {
    const std::string name = std::string(op_) + ": weights[" + std::to_string(weight_) + "]";
    const Tensor& weight = from_.weights[weight_++];
    check_cpu(weight, ScalarType::Float, name);
    check(weight.dim() == 4, name, " must have 4 dimensions, but its shape is ",
          to_string(weight.sizes()), '.');
    const int64_t out_channels = weight.size(0);
    check(out_channels >= 1 && out_channels <= kMaxSide, name, " must have 1 to ", kMaxSide,
          " output channels, got ", out_channels, '.');
    check_shape(weight, {out_channels, in_channels, kernel, kernel}, name);
    return weight;
  }

  Norm norm(int64_t channels) {
    const std::string name = std::string(op_) + ": batch norm " + std::to_string(norm_) + "'s ";
    const auto read = [&](const Tensor& tensor, const char* part) {
      check_cpu(tensor, ScalarType::Float, name + part);
      check_shape(tensor, {channels}, name + part);
      return tensor;
    };
    Norm norm;
    norm.weight = read(from_.norms[2 * norm_], "weight");
    norm.bias = read(from_.norms[2 * norm_ + 1], "bias");
    norm.mean = read(from_.running[2 * norm_], "running mean");
    norm.var = read(from_.running[2 * norm_ + 1], "running variance");
    norm.batch_stats = from_.norm_flags[2 * norm_];
    norm.update = from_.norm_flags[2 * norm_ + 1];
    norm.eps = from_.norm_constants[2 * norm_];
    norm.momentum = from_.norm_constants[2 * norm_ + 1];
    ++norm_;
    return norm;
  }

 private:
  const char* op_;
  const Arguments& from_;
  size_t weight_ = 0, norm_ = 0;
};

void check_integers(const char* op, int64_t index, const int64_t* integers) {
  check(integers[0] >= 0 && integers[0] <= kProjection, op, ": blocks must give a form of 0 to ",
        kProjection, " for block ", index, ", got ", integers[0], '.');
  check(integers[1] == 1 || integers[1] == 2, op, ": blocks must give stride 1 or 2 for block ",
        index, ", got ", integers[1], '.');
  check(integers[2] >= 1 && integers[2] <= 4, op, ": blocks must give a gate of 1 to 4 for block ",
        index, ", got ", integers[2], ": blocks that are OFF are left out.");
}

// The number of blocks without the projection, where every list is as long as they ask for.
int64_t check_lists(const char* op, const Arguments& from) {
  const size_t count = from.blocks.size() / 3;
  check(count >= 1 && from.blocks.size() == 3 * count, op,
        ": blocks must hold three integers for each of at least one block, got ",
        from.blocks.size(), '.');
  for (size_t b = 0; b < count; ++b) check_integers(op, b, &from.blocks[3 * b]);
  const bool projects = from.blocks[3 * (count - 1)] == kProjection;
  const size_t blocks = count - (projects ? 1 : 0);
  size_t convs = 0;
  for (size_t b = 0; b < blocks; ++b) {
    check(from.blocks[3 * b] != kProjection, op,
          ": a projection stands behind the blocks, but is at ", b, " of ", count, '.');
    convs += kForms[from.blocks[3 * b]].kernels.size();
  }
  check(blocks >= 1, op, ": a projection needs a block whose shortcut it is.");
  const size_t norms = convs + (projects && !kForms[from.blocks[0]].preact ? 1 : 0);
  check_count(op, "weights", from.weights.size(), convs + (projects ? 1 : 0));
  check_count(op, "norms", from.norms.size(), 2 * norms);
  check_count(op, "running", from.running.size(), 2 * norms);
  check_count(op, "norm_flags", from.norm_flags.size(), 2 * norms);
  check_count(op, "norm_constants", from.norm_constants.size(), 2 * norms);
  return blocks;
}

// The block's first 3x3 convolution takes its stride.
void read_layers(Block& block, const Form& form, int64_t stride, Extent in, int64_t channels,
                 Reader& reader) {
  for (const int64_t kernel : form.kernels) {
    if (block.preact) block.norms.push_back(reader.norm(channels));
    Conv conv{reader.weight(channels, kernel), kernel, 1, in, {}};
    if (kernel == 3) std::swap(conv.stride, stride);
    channels = conv.weight.size(0);
    in = conv.out = {in.height / conv.stride, in.width / conv.stride, blocks_of(channels)};
    block.convs.push_back(conv);
    if (!block.preact) block.norms.push_back(reader.norm(channels));
  }
}

Block read_block(const char* op, int64_t index, const int64_t* integers, const Extent& in,
                 int64_t in_channels, bool changes, Reader& reader) {
  const Form& form = kForms[integers[0]];
  const int64_t stride = integers[1];
  Block block;
  block.preact = form.preact;
  block.gate = static_cast<Gate>(integers[2]);
  check(stride == 1 || (in.height % 2 == 0 && in.width % 2 == 0), op,
        ": a block of stride 2 needs an even height and width, got ", in.height, " x ", in.width,
        '.');
  read_layers(block, form, stride, in, in_channels, reader);
  const bool same = stride == 1 && block.out_channels() == in_channels;
  check(same || (changes && index == 0), op, ": block ", index,
        " changes the shape, so it must come first, with its shortcut as `skip` or a projection.");
  return block;
}

// The multipliers of a block: `scales` holds one a block, or one for each image of each block.
std::vector<float> read_multipliers(const char* op, const std::vector<double>& scales,
                                    int64_t index, int64_t count, int64_t images) {
  const auto size = static_cast<int64_t>(scales.size());
  check(size == count || size == count * images, op, ": scales must hold a value for each of ",
        count, " blocks, or for each of ", images, " images of each block, got ", size, '.');
  if (size == count) return std::vector<float>(images, static_cast<float>(scales[index]));
  const auto first = scales.begin() + index * images;
  return {first, first + images};
}

// The shortcut of a run's first block.
Block read_projection(const char* op, const int64_t* integers, const Block& of, int64_t channels,
                      Reader& reader) {
  const int64_t stride = integers[1];
  const Extent& in = of.in();
  Conv conv{reader.weight(channels, 1), 1, stride, in, {}};
  conv.out = {in.height / stride, in.width / stride, blocks_of(conv.weight.size(0))};
  check(conv.weight.size(0) == of.out_channels() && conv.out.height == of.out().height, op,
        ": the projection must give what its block gives, ", of.out_channels(), " channels of ",
        of.out().height, " rows, got ", conv.weight.size(0), " of ", conv.out.height, '.');
  Block projection;
  projection.preact = of.preact;
  projection.gate = static_cast<Gate>(integers[2]);
  projection.convs.push_back(conv);
  if (!of.preact) projection.norms.push_back(reader.norm(of.out_channels()));
  return projection;
}

void check_sizes(const char* op, const Arguments& from, const Block& block) {
  for (const Conv& conv : block.convs)
    check(from.x.size(0) * std::max(conv.in.floats(), conv.out.floats()) <= kMaxFloats, op,
          ": x of shape ", to_string(from.x.sizes()),
          " is too large. Use fewer or smaller images.");
}

// Rows of x in ascending order, each of them once.
std::vector<int64_t> read_rows(const char* op, const Tensor& rows, int64_t images) {
  const std::string name = std::string(op) + ": rows";
  check_cpu(rows, ScalarType::Long, name);
  check(rows.dim() == 1 && rows.size(0) >= 1 && (rows.size(0) == 1 || rows.stride(0) == 1), name,
        " must be a list of at least one row of x, side by side in memory, but its shape is ",
        to_string(rows.sizes()), '.');
  const auto* first = static_cast<const int64_t*>(rows.data_ptr());
  const std::vector<int64_t> list(first, first + rows.size(0));
  for (size_t i = 0; i < list.size(); ++i)
    check(list[i] > (i == 0 ? -1 : list[i - 1]) && list[i] < images, name,
          " must ascend within the ", images, " images of x, but has ", list[i], " at ", i, '.');
  return list;
}

}  // namespace

Plan read_plan(const char* op, const Arguments& from, bool has_skip) {
  check_cpu(from.x, ScalarType::Float, std::string(op) + ": x");
  check(from.x.dim() == 4, op, ": x must have shape [N, C, H, W], but it has ",
        to_string(from.x.sizes()), '.');
  for (int64_t d = 1; d < 4; ++d)
    check(from.x.size(d) >= 1 && from.x.size(d) <= kMaxSide, op,
          ": x must have C, H and W of 1 to ", kMaxSide, ", but its shape is ",
          to_string(from.x.sizes()), '.');
  const int64_t count = check_lists(op, from);
  const bool projects = from.blocks.size() > static_cast<size_t>(3 * count);
  check(!has_skip || !projects, op, ": the first block has one shortcut, got skip and projection.");
  const bool changes = has_skip || projects;
  Plan plan{op, from.x.size(0), {}, {}, {}};
  if (from.rows.has_value()) {
    check(!changes, op, ": rows stand for blocks whose shortcut is the identity, got another.");
    plan.rows = read_rows(op, *from.rows, plan.images);
    plan.images = static_cast<int64_t>(plan.rows.size());
  }
  Reader reader(op, from);
  Extent in{from.x.size(2), from.x.size(3), blocks_of(from.x.size(1))};
  int64_t channels = from.x.size(1), layers = 0;
  for (int64_t b = 0; b < count; ++b) {
    plan.blocks.push_back(read_block(op, b, &from.blocks[3 * b], in, channels, changes, reader));
    Block& block = plan.blocks.back();
    block.multipliers = read_multipliers(op, from.scales, b, count, plan.images);
    check(block.preact == plan.preact(), op,
          ": blocks must be all post-activation or all pre-activation, as the first one is.");
    check_sizes(op, from, block);
    block.first = layers;
    layers += block.size();
    in = block.out();
    channels = block.out_channels();
  }
  if (projects) {
    plan.projection =
        read_projection(op, &from.blocks[3 * count], plan.blocks[0], from.x.size(1), reader);
    plan.projection->first = layers;
  }
  return plan;
}

}  // namespace pathnet::train
