#pragma once

#include <cublas_v2.h>

#include <functional>

#include "core/params.h"
#include "cuda/plan.h"

// One layer on the device. csrc/torch/cuda.cpp calls these functions.

namespace fastrnn::cuda {

// Where and how a layer is computed: in order on a stream of the current device. `allocate` returns memory that
// nothing else uses until the work of the call has run.
struct Context {
  cudaStream_t stream;
  cublasHandle_t blas;  // set to that stream; the call restores its math mode and resets its workspace
  Math math;
  std::function<void*(int64_t bytes)> allocate;
};

// Pointers in the parameters are to device memory, except the arrays of `rows`. No call waits for the device.
// Errors are std::runtime_error.
template <class T>
struct LayerKernels {
  void (*forward)(const ForwardParams<T>&, const Context&);
  void (*backward)(const BackwardParams<T>&, const Context&);
  // The plan by which the current device computes a problem. The device can hold all blocks of the plan at once.
  Plan (*plan)(const Problem&);
};

// cell: its index in cells/registry.h
template <class T>
const LayerKernels<T>& kernels_of(int cell);

}  // namespace fastrnn::cuda
