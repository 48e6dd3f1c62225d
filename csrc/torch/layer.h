#pragma once

// One layer, one or two directions: the unit that the kernels compute and autograd knows. layer.cpp has the kernels'
// side of the operators, autograd.cpp their derivatives, differentiable.cpp the same in torch operations,
// fastrnn/transforms/vmap.py what torch.vmap makes of them.

#include "torch/schema.h"

namespace fastrnn::torch_ops {

// Tensors that do not fit are errors.
void check_layer(const LayerArgs& args);

// Some of x, hx and weights, counted in this order: bit i is the i-th.
using Which = uint32_t;
// Those that must be as they were in the forward when the backward looks for the gradients of `wanted`. Of the
// others it needs no more than the form, and of h_0 perhaps a copy.
Which kept_for_backward(const LayerArgs& args, Which wanted);

// A storage can be given back, or made smaller, under a tensor (untyped_storage().resize_): torch's operations that
// gather rows would read beyond its end. Wrappers and the like are passed over. name and suffix: for the message.
void check_storage(const Tensor& tensor, const char* name, const char* suffix = "");

// The same as fastrnn::layer_forward and layer_backward in differentiable torch operations: any derivative,
// slowly.
variable_list differentiable_forward(const LayerArgs& args, bool save);
variable_list differentiable_backward(const LayerArgs& args, const BackwardArgs& backward);

}  // namespace fastrnn::torch_ops
