#pragma once
// stage_train: the launches of a run, whatever the form of its blocks.
#include "stage_train_basic.cuh"
#include "stage_train_preact.cuh"

namespace pathnet::train {

template <class Op, int C, class Launch>
void run_forward(const RunPlan& run, void* y, Launch& launch) {
  run.form == kPreact ? run_preact_forward<Op, C>(run, y, launch)
                      : run_basic_forward<Op, C>(run, y, launch);
}

// The buffers with the gradients of x and of the skip; -1: none.
template <class Op, int C, class Launch>
void run_backward(const RunPlan& run, const BackwardRun& outside, Launch& launch, int& of_x,
                  int& of_skip) {
  run.form == kPreact ? PreactBackward<Op, C, Launch>(run, outside, launch).run(of_x, of_skip)
                      : BasicBackward<Op, C, Launch>(run, outside, launch).run(of_x, of_skip);
}

}  // namespace pathnet::train
