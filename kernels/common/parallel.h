// Work over ATen's threads.
#pragma once

#include <cstdint>

#include "kernels/common/registration.h"

namespace graft_kernels {

// Calls run(begin, end) for parts of [0, tasks); in this thread alone where one grain holds them all.
template <typename Run>
void spread(int64_t tasks, int64_t grain, const Run& run) {
  if (tasks <= grain) {
    return run(0, tasks);
  }
  torch::stable::parallel_for(0, tasks, grain, run);
}

}  // namespace graft_kernels
