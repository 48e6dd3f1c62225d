#pragma once

#include <cuda_runtime_api.h>

#include "cuda/persistent/elements.h"
#include "cuda/plan.h"
#include "cuda/recurrence.h"

// Grid and cluster plans: one launch computes the whole recurrence, or that of one direction (Plan::directions).

namespace fastrnn::cuda::persistent {

// The bytes of global memory that a launch needs: uninitialised, aligned for uint32_t.
inline int64_t workspace_bytes(const Plan& plan) {
  return plan.kind == Kind::grid ? int64_t{4} * plan.directions * plan.block_groups * plan.tiles : 0;
}

// Functions for the current device. persistent.cu defines them for every cell and every math but fp64.
template <class Cell, Math math>
struct PersistentKernels {
  // Whether the device can hold all blocks of the plan at once. It is called before the first launch of a plan.
  static bool fits(const Plan& plan, bool backward);

  // Run in stream order. The host does not wait. They return the error of the launch.
  static cudaError_t forward(const Plan& plan, const Recurrence<Stored<math>>& p, void* workspace,
                             cudaStream_t stream);
  static cudaError_t backward(const Plan& plan, const BackwardRecurrence<Stored<math>>& p, void* workspace,
                              cudaStream_t stream);
};

// Calls f with the PersistentKernels of a cell, for numbers that are stored as T.
template <class Cell, class T, class F>
auto with_kernels(Math math, const F& f) {
  if constexpr (std::is_same_v<T, bf16>) {
    return f(PersistentKernels<Cell, Math::bf16>{});
  } else if constexpr (std::is_same_v<T, fp16>) {
    return f(PersistentKernels<Cell, Math::fp16>{});
  } else {
    return math == Math::tf32 ? f(PersistentKernels<Cell, Math::tf32>{})
                              : f(PersistentKernels<Cell, Math::ieee>{});
  }
}

template <class Cell, class T>
bool fits(const Plan& plan, Math math, bool backward) {
  if constexpr (std::is_same_v<T, double>) {
    return false;
  } else {
    return with_kernels<Cell, T>(math, [&](auto kernels) { return kernels.fits(plan, backward); });
  }
}

template <class Cell, class T>
cudaError_t forward(const Plan& plan, Math math, const Recurrence<T>& p, void* workspace,
                    cudaStream_t stream) {
  if constexpr (std::is_same_v<T, double>) {
    return cudaErrorInvalidValue;  // make_plan gives fp64 a stepwise plan
  } else {
    return with_kernels<Cell, T>(math,
                                 [&](auto kernels) { return kernels.forward(plan, p, workspace, stream); });
  }
}

template <class Cell, class T>
cudaError_t backward(const Plan& plan, Math math, const BackwardRecurrence<T>& p, void* workspace,
                     cudaStream_t stream) {
  if constexpr (std::is_same_v<T, double>) {
    return cudaErrorInvalidValue;
  } else {
    return with_kernels<Cell, T>(math,
                                 [&](auto kernels) { return kernels.backward(plan, p, workspace, stream); });
  }
}

}  // namespace fastrnn::cuda::persistent
