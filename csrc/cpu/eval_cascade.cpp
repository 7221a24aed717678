#include "eval_cascade.h"

#include <cstring>

namespace pathnet {

int64_t Cascade::floats(const Plan& plan, const Shares& shares) {
  int64_t result = Group::scratch_floats(plan);
  for (size_t s = 0; s < plan.sections.size(); ++s)
    result += Group::floats(plan.sections[s], shares.together[s]);
  return result;
}

Cascade::Cascade(const Plan& plan, const Switches& switches, const Shares& shares, float* memory,
                 const Load& load)
    : load_(load), scratch_(memory) {
  memory += Group::scratch_floats(plan);
  for (size_t s = 0; s < plan.sections.size(); ++s) {
    const int64_t images = shares.together[s];
    groups_.emplace_back(plan, plan.sections[s], switches, images, memory, scratch_);
    memory += Group::floats(plan.sections[s], images);
  }
}

void Cascade::run(size_t section, int64_t first, int64_t images, Crew& crew) {
  Group& group = groups_[section];
  if (section == 0) {
    for (int64_t i = 0; i < images; ++i) load_(first + i, group.input(i));
  } else {
    Group& before = groups_[section - 1];
    const int64_t parts = divide_up(images, before.capacity());
    for (int64_t p = 0; p < parts; ++p) {
      const int64_t begin = p * images / parts, end = (p + 1) * images / parts;
      run(section - 1, first + begin, end - begin, crew);
      for (int64_t i = begin; i < end; ++i) {
        const Image& image = before.output(i - begin);
        std::memcpy(group.input(i).data, image.data, image.size() * sizeof(float));
      }
    }
  }
  group.run(first, images, crew);
}

}  // namespace pathnet
