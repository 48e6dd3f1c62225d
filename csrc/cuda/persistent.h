#pragma once

#include <cuda_runtime_api.h>

#include "cuda/plan.h"
#include "cuda/recurrence.h"

// Tiers 1 and 2: the whole recurrence in one launch (or one a direction, see Plan::directions).

namespace fastrnn::cuda::persistent {

// Bytes of global memory that a launch needs, aligned to 256; uninitialised.
template <class T>
int64_t workspace_bytes(const Plan& plan, const Recurrence<T>& p);

// Whether the device can hold the plan's blocks at once. If not, the caller takes tier 0.
template <class Cell, class T>
bool fits(const Plan& plan, Math math, bool backward);

// On the current device, in stream order, without host synchronisation. Return the launch's error.
template <class Cell, class T>
cudaError_t forward(const Plan& plan, Math math, const Recurrence<T>& p, void* workspace,
                    cudaStream_t stream);
template <class Cell, class T>
cudaError_t backward(const Plan& plan, Math math, const BackwardRecurrence<T>& p, void* workspace,
                     cudaStream_t stream);

}  // namespace fastrnn::cuda::persistent
