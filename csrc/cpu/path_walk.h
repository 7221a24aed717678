#pragma once
// Gradients on their way back through convolutions and masks: no value of the forward is read.
//
// Depth-first as in stage_eval: a thread takes a group of images through all of it, so that
// gradients stay in its cache. An image's result depends on that image alone, so the bits depend
// neither on the groups nor on the number of threads.
#include <vector>

#include "../check.h"
#include "eval.h"

namespace pathnet {

struct Walk {
  enum class Way {
    kOn,         // g = cut(conv(g))
    kAside,      // h = cut(conv(g))
    kBackWhole,  // g = cut(g + conv(h))
    kBackCut,    // g = g + cut(conv(h))
  };
  // cut(v) is v where a bit of the mask is set, else 0; null: all are.
  struct Step {
    Conv conv;  // 3x3, of stride 1, that keeps the channels; its weights need not be packed
    const uint16_t* mask;
    Way way;
  };

  Image shape;                     // of every gradient on the way
  const uint16_t* mask = nullptr;  // that cuts the gradient before the first step
  std::vector<Step> steps;
  int64_t masked_images = 1;  // of each mask, read in turn

  int64_t mask_words() const { return shape.blocks * shape.height * shape.width; }
};

// The gradient [k masked_images, C, H, W] behind all steps; packs their weights.
Tensor walk_back(const char* op, Walk& walk, const Tensor& gradient);

}  // namespace pathnet
