#include "eval_shares.h"

#include <torch/csrc/stable/ops.h>

namespace pathnet {
namespace {

int64_t tiles_of(const Shape& shape) {
  return divide_up(shape.height, Image::kTile) * divide_up(shape.width, Image::kTile);
}

// Of one image.
int64_t multiply_adds(const Plan& plan) {
  int64_t result = 0;
  for (const Block& block : plan.blocks)
    if (block.runs)
      for (const ConvNorm& step : block.branch)
        result += step.conv.weight_floats() * tiles_of(block.out);
  return result;
}

// Tiles that should share one reading of weights which are too large for the second cache.
int64_t tiles_wanted(const ConvNorm& step) {
  constexpr int64_t kCached = 256 << 10, kTiles = 256;
  return step.conv.weight_floats() > kCached ? kTiles : 1;
}

// As many images as keep a block's input and inner value in the second cache, or as share the
// reading of large weights.
int64_t images_together(const Plan& plan, const Section& section) {
  constexpr int64_t kCache = 200 << 10;  // floats, of the second cache's 512 Ki or more
  int64_t images = std::max<int64_t>(1, kCache / (2 * section.image_floats));
  for (int64_t b = section.first; b < section.end; ++b)
    for (const ConvNorm& step : plan.blocks[b].branch)
      images = std::max(images, divide_up(tiles_wanted(step), tiles_of(plan.blocks[b].out)));
  return images;
}

// Groups of at most `most` images; several threads end together if the last groups are small, but
// not smaller than `least`.
std::vector<int64_t> cut(int64_t images, int64_t threads, int64_t least, int64_t most) {
  std::vector<int64_t> starts{0};
  const int64_t even = divide_up(images, divide_up(images, most));
  while (starts.back() < images) {
    const int64_t left = images - starts.back();
    const int64_t some =
        threads == 1 ? even : std::clamp(divide_up(left, 2 * threads), least, most);
    starts.push_back(starts.back() + std::min(some, left));
  }
  return starts;
}

// Sections through which as many images go together are one: to part them would be to copy.
void join(std::vector<Section>& sections, std::vector<int64_t>& together) {
  size_t last = 0;
  for (size_t s = 1; s < sections.size(); ++s) {
    if (together[s] != together[last]) {
      sections[++last] = sections[s], together[last] = together[s];
      continue;
    }
    sections[last].end = sections[s].end;
    sections[last].image_floats = std::max(sections[last].image_floats, sections[s].image_floats);
  }
  sections.resize(last + 1), together.resize(last + 1);
}

}  // namespace

Shares share_out(Plan& plan, int64_t images) {
  constexpr int64_t kAlone = 400 << 10;       // floats of values: a thread then has one group
  constexpr int64_t kWorthSharing = 4 << 20;  // multiply-adds: to call threads takes as long
  const int64_t threads = torch::stable::get_num_threads(), fair = divide_up(images, threads);
  int64_t largest = 0;
  Shares shares;
  for (const Section& section : plan.sections) {
    largest = std::max(largest, section.image_floats);
    const int64_t before = shares.together.empty() ? 1 : shares.together.back();
    shares.together.push_back(std::max(before, images_together(plan, section)));
  }
  const bool alone = 2 * fair * largest <= kAlone;
  for (int64_t& together : shares.together) together = alone ? fair : std::min(together, fair);
  join(plan.sections, shares.together);
  shares.starts = cut(images, threads, shares.together.front(), shares.together.back());
  const bool share =
      shares.groups() < threads && multiply_adds(plan) * shares.together.back() > kWorthSharing;
  shares.workers = share ? threads : std::min(shares.groups(), threads);
  return shares;
}

}  // namespace pathnet
