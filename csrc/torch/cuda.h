#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>

#include "cells/registry.h"
#include "core/params.h"
#include "cuda/plan.h"
#include "torch/schema.h"

namespace fastrnn::torch_ops {

// The CUDA side of csrc/torch/layer.cpp: the device of x, its current stream, scratch memory from torch.
class Cuda {
 public:
  static constexpr bool computes = true, has_half = true;
  // A user's cell has none. Python gives a GPU segments of sequences, not resets.
  static bool has_kernels(const LayerArgs& args) { return args.cell < cells::kCellCount && !args.resets; }
  explicit Cuda(const at::Tensor& x) : guard_(x.device()) {}

  // Defined for float, double, fp16 and bf16. No call waits for the device.
  template <class T>
  void forward(int cell, const ForwardParams<T>& p) const;
  template <class T>
  void backward(int cell, const BackwardParams<T>& p) const;

 private:
  const c10::cuda::CUDAGuard guard_;
};

// How the current device computes a problem: a plan whose blocks it says it can hold at once.
cuda::Plan plan_on_device(int cell, const cuda::Problem& problem);

}  // namespace fastrnn::torch_ops
