#include "stage_plan.h"

#include <algorithm>
#include <tuple>

namespace pathnet {
namespace {

constexpr int64_t kMaxSide = int64_t{1}
                             << 20;  // of height, width and channels: products then fit 64 bits
constexpr int64_t kMaxImageFloats = int64_t{1} << 36;  // 256 GiB
constexpr int64_t kIntegersPerBlock = 4;

// How messages call a tensor of a block. It is written out only where something is wrong: a deep
// net has hundreds.
struct TensorName {
  size_t at;
  const char* role;
  int64_t block;
};

std::ostream& operator<<(std::ostream& out, const TensorName& name) {
  return out << "stage_eval: tensors[" << name.at << "] (" << name.role << " of block "
             << name.block << ")";
}

// Reads tensors and eps in execution order.
class Reader {
 public:
  Reader(const std::vector<Tensor>& tensors, const std::vector<double>& eps)
      : tensors_(tensors), eps_(eps) {}

  ConvNorm conv(int64_t block, int64_t in_channels, int64_t stride) {
    const TensorName name = next_name("a convolution weight", block);
    const Tensor& weight = next_tensor(name);
    const int64_t out_channels = weight.dim() == 4 ? weight.size(0) : 0;
    const int64_t kernel = out_channels > 0 ? weight.size(2) : 0;
    if (out_channels < 1 || out_channels > kMaxSide || (kernel != 1 && kernel != 3))
      check(false, name, " must be [1 to ", kMaxSide, " output channels, input channels, kernel, ",
            "kernel] with a kernel of 1 or 3, but its shape is ", to_string(weight.sizes()), '.');
    check_shape(weight, {out_channels, in_channels, kernel, kernel}, name);
    check(kernel == 1 || stride <= 2, name, " is 3x3 and has the stride ", stride,
          ", but 3x3 convolutions must have a stride of 1 or 2.");
    ConvNorm result;
    result.conv = {in_channels, out_channels, kernel, stride};
    result.conv.view = {weight.const_data_ptr<float>(),
                        out_channels,
                        in_channels,
                        weight.stride(0),
                        weight.stride(1),
                        weight.stride(2),
                        weight.stride(3)};
    return result;
  }

  Norm norm(int64_t block, int64_t channels) {
    Norm result;
    result.channels = channels;
    for (Channels* part : {&result.weight, &result.bias, &result.mean, &result.var}) {
      const TensorName name = next_name("a batch norm tensor", block);
      const Tensor& tensor = next_tensor(name);
      check_shape(tensor, {channels}, name);
      *part = {tensor.const_data_ptr<float>(), tensor.stride(0)};
    }
    check(eps_at_ < eps_.size(),
          "stage_eval: eps must have one value per batch norm, but it has only ", eps_.size(), '.');
    result.eps = eps_[eps_at_++];
    return result;
  }

  ConvNorm conv_norm(int64_t block, int64_t in_channels, int64_t stride) {
    ConvNorm result = conv(block, in_channels, stride);
    result.norm = norm(block, result.conv.out_channels);
    result.has_norm = true;
    return result;
  }

  void finish() const {
    check(at_ == tensors_.size(), "stage_eval: tensors must hold ", at_,
          " tensors for these blocks, got ", tensors_.size(), '.');
    check(eps_at_ == eps_.size(), "stage_eval: eps must hold ", eps_at_,
          " values for these blocks, got ", eps_.size(), '.');
  }

 private:
  TensorName next_name(const char* role, int64_t block) const { return {at_, role, block}; }

  const Tensor& next_tensor(const TensorName& name) {
    check(at_ < tensors_.size(), name, " is missing: tensors has only ", tensors_.size(),
          " entries.");
    check_cpu(tensors_[at_], ScalarType::Float, name);
    return tensors_[at_++];
  }

  const std::vector<Tensor>& tensors_;
  const std::vector<double>& eps_;
  size_t at_ = 0, eps_at_ = 0;
};

void read_branch(Block& block, int64_t index, Reader& reader) {
  const int64_t stride = block.stride;
  auto& branch = block.branch;
  branch.reserve(3);
  const auto channels = [&] { return branch.back().conv.out_channels; };
  switch (block.form) {
    case Form::kBasic:
      branch.push_back(reader.conv_norm(index, block.in.channels, stride));
      branch.push_back(reader.conv_norm(index, channels(), 1));
      break;
    case Form::kPreact:
      block.first_norm = reader.norm(index, block.in.channels);
      branch.push_back(reader.conv_norm(index, block.in.channels, stride));
      branch.push_back(reader.conv(index, channels(), 1));
      break;
    case Form::kBottleneck:
      branch.push_back(reader.conv_norm(index, block.in.channels, 1));
      branch.push_back(reader.conv_norm(index, channels(), stride));
      branch.push_back(reader.conv_norm(index, channels(), 1));
      break;
    case Form::kStem:
    case Form::kPlainStem:
      break;  // they have none
  }
  block.out = {(block.in.height - 1) / stride + 1, (block.in.width - 1) / stride + 1, channels()};
}

void read_stem(Block& block, int64_t index, Reader& reader) {
  check(block.shortcut == Shortcut::kConv && block.stride == 1, "stage_eval: block ", index,
        " is a stem, so it must have shortcut 2 and stride 1, but it has shortcut ",
        static_cast<int64_t>(block.shortcut), " and stride ", block.stride, '.');
  block.projection = block.form == Form::kStem ? reader.conv_norm(index, block.in.channels, 1)
                                               : reader.conv(index, block.in.channels, 1);
  block.out = {block.in.height, block.in.width, block.projection.conv.out_channels};
}

void read_shortcut(Block& block, int64_t index, Reader& reader) {
  const int64_t in = block.in.channels, out = block.out.channels;
  switch (block.shortcut) {
    case Shortcut::kIdentity:
      check(
          in == out && block.stride == 1, "stage_eval: block ", index,
          " has the identity shortcut, so it needs stride 1 and equal channels, but it has stride ",
          block.stride, " and maps ", in, " channels to ", out, '.');
      break;
    case Shortcut::kPad:
      check(block.pad_before >= 0 && block.pad_before <= out - in,
            "stage_eval: pad_before of block ", index, " must lie between 0 and the ", out - in,
            " channels that are added, got ", block.pad_before, '.');
      break;
    case Shortcut::kConv:
      block.projection = block.form == Form::kPreact ? reader.conv(index, in, block.stride)
                                                     : reader.conv_norm(index, in, block.stride);
      check(block.projection.conv.out_channels == out && block.projection.conv.kernel == 1,
            "stage_eval: the shortcut convolution of block ", index, " must be 1x1 with ", out,
            " output channels, but it is ", block.projection.conv.kernel, "x",
            block.projection.conv.kernel, " with ", block.projection.conv.out_channels, '.');
      break;
  }
}

Block read_block(const int64_t* integers, int64_t index, const Shape& in, Reader& reader) {
  const auto [form, stride, shortcut, pad_before] =
      std::tie(integers[0], integers[1], integers[2], integers[3]);
  check(form >= 0 && form <= 4, "stage_eval: blocks must give a form of 0 to 4 for block ", index,
        ", got ", form, '.');
  check(stride >= 1 && stride <= kMaxSide, "stage_eval: blocks must give a stride of 1 to ",
        kMaxSide, " for block ", index, ", got ", stride, '.');
  check(shortcut >= 0 && shortcut <= 2,
        "stage_eval: blocks must give shortcut 0, 1 or 2 for block ", index, ", got ", shortcut,
        '.');
  Block block{};
  block.form = static_cast<Form>(form);
  block.shortcut = static_cast<Shortcut>(shortcut);
  block.stride = stride;
  block.pad_before = pad_before;
  block.in = in;
  if (block.is_stem()) {
    read_stem(block, index, reader);
  } else {
    read_branch(block, index, reader);
    read_shortcut(block, index, reader);
  }
  return block;
}

int64_t floats(const Shape& shape) {
  return Image{nullptr, shape.height, shape.width, blocks_of(shape.channels)}.size();
}

// Of the largest image that the block reads, makes or keeps inside.
int64_t image_floats(const Block& block) {
  int64_t most = std::max(floats(block.in), floats(block.out));
  Shape shape = block.in;
  for (const ConvNorm& step : block.branch) {
    shape = shape_behind(step.conv, shape);
    const int64_t read = step.conv.in_blocks() * kBlock;  // all four phases, if it reads these
    most = std::max({most, floats(shape), floats({shape.height, shape.width, read})});
  }
  return most;
}

// Adds a block to the last section, or to a new one where images have become much smaller.
void add_to_sections(std::vector<Section>& sections, const Block& block) {
  const int64_t index = sections.back().end, needed = image_floats(block);
  if (index > 0 && 3 * needed <= 2 * sections.back().image_floats)
    sections.push_back({index, index, block.in, needed});
  sections.back().end = index + 1;
  sections.back().image_floats = std::max(sections.back().image_floats, needed);
}

}  // namespace

Switches::Switches(const Tensor& gates, const Tensor& scales, int64_t images, int64_t blocks) {
  const auto check_switch = [&](const Tensor& tensor, ScalarType dtype, const std::string& name) {
    check_cpu(tensor, dtype, name);
    if (tensor.dim() == 2) return check_shape(tensor, {images, blocks}, name);
    check_shape(tensor, {blocks}, name);
  };
  check_switch(gates, ScalarType::Char, "stage_eval: gates");
  check_switch(scales, ScalarType::Float, "stage_eval: scales");
  const auto image_stride = [](const Tensor& tensor) {
    return tensor.dim() == 2 ? tensor.stride(0) : 0;
  };
  gates_ = gates.const_data_ptr<int8_t>();
  scales_ = scales.const_data_ptr<float>();
  gate_image_ = image_stride(gates), gate_block_ = gates.stride(gates.dim() - 1);
  scale_image_ = image_stride(scales), scale_block_ = scales.stride(scales.dim() - 1);
}

Plan read_plan(const Tensor& x, const std::vector<Tensor>& tensors,
               const std::vector<int64_t>& blocks, const std::vector<double>& eps) {
  check_cpu(x, ScalarType::Float, "stage_eval: x");
  check(x.dim() == 4, "stage_eval: x must have shape [N, C, H, W], but it has ",
        to_string(x.sizes()), '.');
  for (int64_t d = 1; d < 4; ++d)
    check(x.size(d) >= 1 && x.size(d) <= kMaxSide, "stage_eval: x must have C, H and W of 1 to ",
          kMaxSide, ", but its shape is ", to_string(x.sizes()), '.');
  check(blocks.size() % kIntegersPerBlock == 0,
        "stage_eval: blocks must hold 4 integers per block, got ", blocks.size(), '.');

  Plan plan;
  plan.in = plan.out = {x.size(2), x.size(3), x.size(1)};
  plan.sections = {{0, 0, plan.in, floats(plan.in)}};
  Reader reader(tensors, eps);
  const int64_t count = blocks.size() / kIntegersPerBlock;
  plan.blocks.reserve(count);
  for (int64_t b = 0; b < count; ++b) {
    plan.blocks.push_back(read_block(&blocks[b * kIntegersPerBlock], b, plan.out, reader));
    plan.out = plan.blocks.back().out;
    add_to_sections(plan.sections, plan.blocks.back());
  }
  reader.finish();
  for (const Section& section : plan.sections)
    check(section.image_floats <= kMaxImageFloats, "stage_eval: x of shape ", to_string(x.sizes()),
          " needs ", section.image_floats, " floats of scratch memory an image, more than the ",
          kMaxImageFloats, " supported. Use smaller images.");
  return plan;
}

}  // namespace pathnet
