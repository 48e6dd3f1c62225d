#pragma once

// One layer, one or two directions: the unit that the kernels compute and autograd knows.
//
//   fastrnn::layer          the operator others are composed of; differentiable
//   fastrnn::layer_forward  the kernel: [y, h_n(, c_n)], and with `save` what the backward needs:
//                           [s][, c][, a copy of y], as far as there are such
//   fastrnn::layer_backward the kernel of its first derivative
//
// x is [T, B, I] ([B, T, I] with batch_first), packed [R, I] with batch_sizes, or one step [B, I]. hx is
// empty or [h_0(, c_0)], each [D, B, .]; for one step [B, .], and h_n is left out, being y. weights: W_ih,
// W_hh[, b_ih, b_hh][, W_hr] for each direction.

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/variable.h>

#include <string>

namespace fastrnn::torch_ops {

using at::Tensor;
using std::optional;
using torch::autograd::variable_list;

// The layer in differentiable torch operations: any derivative, slowly. Same arguments and result as
// fastrnn::layer.
variable_list differentiable_layer(const Tensor& x, const optional<Tensor>& batch_sizes, at::TensorList hx,
                                   at::TensorList weights, const std::string& cell, bool bidirectional,
                                   bool batch_first);

// How the weights of a layer are laid out, from how many there are.
struct WeightLayout {
  int64_t D;     // directions
  int64_t each;  // tensors a direction
  bool bias() const { return each >= 4; }
  bool projected() const { return each % 2 == 1; }
};
WeightLayout weight_layout(at::TensorList weights, bool bidirectional);

}  // namespace fastrnn::torch_ops
