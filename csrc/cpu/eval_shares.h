#pragma once
// How a batch is shared out in evaluation.
#include <algorithm>
#include <vector>

#include "stage_plan.h"

namespace pathnet {

struct Shares {
  int64_t workers;                // threads; those beyond the number of groups help others
  std::vector<int64_t> starts;    // the first image of each group, and behind all of them the end
  std::vector<int64_t> together;  // images that go through a section together, at most

  int64_t groups() const { return starts.size() - 1; }
  // That compute group g: its leader, and every groups()-th of the workers that have none.
  int64_t threads(int64_t g) const {
    return std::max<int64_t>(1, workers / groups() + (g < workers % groups()));
  }
  // Whether weights are read more often than once, and so packed before that.
  bool rereads() const { return groups() > workers || together.front() < together.back(); }
};

// Joins sections of the plan that gain nothing by standing apart.
Shares share_out(Plan& plan, int64_t images);

}  // namespace pathnet
