#pragma once

#include <cuda_runtime_api.h>

#include "cuda/plan.h"
#include "cuda/product.h"
#include "cuda/recurrence.h"

// Tiers 1 and 2: the whole recurrence in one launch (or one a direction, see Plan::directions).

namespace fastrnn::cuda::persistent {

// Bytes of global memory that a launch needs, uninitialised, aligned for uint32_t.
inline int64_t workspace_bytes(const Plan& plan) {
  return plan.tier == 1 ? int64_t{4} * plan.directions * plan.groups * plan.tiles : 0;
}

// On the current device. Defined for every cell and math but fp64.
template <class Cell, Math math>
struct Persistent {
  // Whether the device can hold the plan's blocks at once. If not, the caller takes tier 0.
  static bool fits(const Plan& plan, bool backward);

  // In stream order, without host synchronisation. Return the launch's error.
  static cudaError_t forward(const Plan& plan, const Recurrence<Stored<math>>& p, void* workspace,
                             cudaStream_t stream);
  static cudaError_t backward(const Plan& plan, const BackwardRecurrence<Stored<math>>& p, void* workspace,
                              cudaStream_t stream);
};

}  // namespace fastrnn::cuda::persistent
