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
// W_hh[, b_ih, b_hh][, W_hr] for each direction. With `checkpoint_gates` autograd keeps the arguments only, and
// the backward runs the forward again.
//
// layer.cpp has the kernels' side of the operators, autograd.cpp their derivatives, fastrnn/transforms/vmap.py what
// torch.vmap makes of them.

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/variable.h>

#include <string>
#include <vector>

#include "cpu/dispatch.h"

namespace fastrnn::torch_ops {

using at::Tensor;
using std::optional;
using torch::autograd::variable_list;

// How the weights of a layer are laid out, from how many there are.
struct WeightLayout {
  int64_t D;     // directions
  int64_t each;  // tensors a direction
  bool bias() const { return each >= 4; }
  bool projected() const { return each % 2 == 1; }
};
WeightLayout weight_layout(at::TensorList weights, bool bidirectional);

// Unknown names and tensors that do not fit are errors.
const cpu::CellKernels& find_cell(const std::string& name);
void check_layer(const Tensor& x, const optional<Tensor>& batch_sizes, at::TensorList hx,
                 at::TensorList weights, const std::string& cell, bool bidirectional, bool batch_first);

// Some of x, hx and weights, counted in this order: bit i is the i-th.
using Which = uint32_t;
// Those that must be as they were in the forward when the backward looks for the gradients of `wanted`. Of the
// others it needs no more than the form, and of h_0 perhaps a copy.
Which kept_for_backward(const Tensor& x, const optional<Tensor>& batch_sizes, at::TensorList hx,
                        at::TensorList weights, bool bidirectional, bool batch_first, Which wanted);

// A storage can be given back, or made smaller, under a tensor (untyped_storage().resize_): torch's operations that
// gather rows would read beyond its end. Wrappers and the like are passed over.
void check_storage(const Tensor& tensor, const char* name);

// Has this tensor memory of its own, and is no wrapper of a transform, a trace or a subclass?
inline bool is_plain(const Tensor& tensor) {
  constexpr c10::DispatchKeySet wrappers({c10::DispatchKey::Python, c10::DispatchKey::Functionalize,
                                          c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchBatched,
                                          c10::DispatchKey::FuncTorchGradWrapper});
  return !tensor.key_set().has_any(wrappers);
}

// The operators as C++ calls them.
template <class Function>
c10::TypedOperatorHandle<Function> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}
using LayerFunction = variable_list(const Tensor& x, const optional<Tensor>& batch_sizes, at::TensorList hx,
                                    at::TensorList weights, const std::string& cell, bool bidirectional,
                                    bool batch_first, bool flag);  // checkpoint_gates, or save
using LayerBackwardFunction = variable_list(const c10::List<optional<Tensor>>& grads, const Tensor& x,
                                            const optional<Tensor>& batch_sizes, at::TensorList hx,
                                            at::TensorList weights, const std::string& cell,
                                            bool bidirectional, bool batch_first, at::TensorList saved,
                                            c10::List<bool> wanted);
const c10::TypedOperatorHandle<LayerFunction>& layer_operator();
const c10::TypedOperatorHandle<LayerFunction>& forward_operator();
const c10::TypedOperatorHandle<LayerBackwardFunction>& backward_operator();

// The operators composed of these, fastrnn::rnn and fastrnn::cell.
variable_list rnn(const Tensor& input, const optional<Tensor>& batch_sizes, at::TensorList hx,
                  at::TensorList weights, const std::string& cell, bool has_biases, int64_t num_layers,
                  double dropout, bool train, bool bidirectional, bool batch_first, bool checkpoint_gates);
variable_list cell_step(const Tensor& input, at::TensorList hx, at::TensorList weights,
                        const std::string& cell);

// The same as fastrnn::layer_forward and layer_backward in differentiable torch operations: any derivative,
// slowly. grads: one for each result, undefined for none.
variable_list differentiable_forward(const Tensor& x, const optional<Tensor>& batch_sizes, at::TensorList hx,
                                     at::TensorList weights, const std::string& cell, bool bidirectional,
                                     bool batch_first, bool save);
variable_list differentiable_backward(const variable_list& grads, const Tensor& x,
                                      const optional<Tensor>& batch_sizes, at::TensorList hx,
                                      at::TensorList weights, const std::string& cell, bool bidirectional,
                                      bool batch_first, const c10::List<bool>& wanted);

}  // namespace fastrnn::torch_ops
