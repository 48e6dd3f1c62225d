#pragma once

// The operators, and what their arguments say of a layer.
//
//   fastrnn::rnn, cell      what modules call: a stack of layers, a step; composed of fastrnn::layer (operators.cpp)
//   fastrnn::layer          one layer, one or two directions: what autograd knows
//   fastrnn::layer_forward  the kernel: [y, h_n(, further states)], and with `save` what the backward needs:
//                           [s][, c][, states before zoneout][, a copy of y], as far as there are such
//   fastrnn::layer_backward the kernel of its first derivative
//
// x is [T, B, I] ([B, T, I] with batch_first), packed [R, I] with batch_sizes, or one step [B, I]. hx is empty or has
// a tensor for each state of the cell, [D, B, .]; for one step [B, .], and h_n is left out, being y. weights: the
// cell's parameters in the order of its CellInfo, as far as the layer has them, for each direction. With
// `checkpoint_gates` autograd keeps the arguments only, and the backward runs the forward again. mask [D, B, P]: factors
// of the h that W_hh multiplies. zoneout: for each state the chance that a unit keeps it; with a seed, an int64, at
// random, without one in expectation. resets: before which steps a sequence begins anew; in the reverse direction after
// them.

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/variable.h>

#include <string>
#include <utility>
#include <vector>

#include "core/params.h"
#include "cpu/cell_table.h"

namespace fastrnn::torch_ops {

using at::Tensor;
using cells::CellInfo;
using std::optional;
using torch::autograd::variable_list;

// The index of a cell. ValueError for an unknown name.
int find_cell(const std::string& name);

// Which of its cell's parameters a layer has.
struct WeightLayout {
  const CellInfo& cell;
  int64_t D;     // directions
  int64_t each;  // tensors a direction
  bool bias, projected;

  // Calls f(parameter, its place among a direction's tensors, the number of vectors of a unit before it).
  template <class F>
  void for_each(const F& f) const {
    int place = 0, vectors = 0;
    for (const cells::Parameter& parameter : cell.parameters) {
      if (!CellInfo::is_there(parameter, bias, projected)) continue;
      f(parameter, place++, vectors);
      vectors += cell.vectors_of(parameter);
    }
  }
  // The place of a kind among a direction's tensors, -1 if it is none of them.
  int place_of(cells::ParameterKind kind) const {
    int found = -1;
    for_each([&](const cells::Parameter& parameter, int place, int) {
      if (parameter.kind == kind) found = place;
    });
    return found;
  }
  // A direction's tensors by name.
  WeightsOf<Tensor> of(at::TensorList weights, int64_t d) const;
  // Units of the hidden state, and of the cell.
  c10::SymInt P(at::TensorList weights) const {
    const int W_hh = place_of(cells::ParameterKind::state_matrix);
    return W_hh >= 0 ? weights[W_hh].sym_size(-1) : weights[0].sym_size(0) / cell.gates.size();
  }
  c10::SymInt H(at::TensorList weights) const {
    return projected ? weights[each - 1].sym_size(-1) : P(weights);
  }
  // The width of the input: what W_ih multiplies, or, without W_ih, the gates' shares of all directions.
  c10::SymInt I(at::TensorList weights) const {
    const int W_ih = place_of(cells::ParameterKind::input_matrix);
    return W_ih >= 0 ? weights[W_ih].sym_size(-1) : D * cell.gates.size() * H(weights);
  }
  void check_matrices(at::TensorList weights) const;
};
// Finds the layout by the number of tensors, which tells it (cells/cell.h); RuntimeError if no layout has as
// many. layers: how many there are with the same layout.
WeightLayout weight_layout(const CellInfo& cell, at::TensorList weights, bool bidirectional,
                           int64_t layers = 1);

// What training changes at random in a layer's recurrence (core/params.h, Noise).
struct LayerNoise {
  optional<Tensor> mask, seed;  // [D, B, P]; one int64
  std::vector<double> zoneout;  // none, or one for each state
};

// What the operators are given of a layer.
struct LayerArgs {
  const Tensor& x;
  const optional<Tensor>& batch_sizes;
  at::TensorList hx, weights;
  int cell;  // its index in the table of cells (cpu/cell_table.h)
  bool bidirectional, batch_first;
  LayerNoise noise{};
  optional<Tensor> resets{};  // bool, the sizes of x before its last: begin anew before this step

  const CellInfo& info() const { return cpu::info_of(cell); }
  bool packed() const { return batch_sizes.has_value(); }
  bool is_step() const { return x.dim() == 2 && !packed(); }
  WeightLayout layout() const { return weight_layout(info(), weights, bidirectional); }
};

// The operators as C++ calls them.
template <class Function>
c10::TypedOperatorHandle<Function> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}
variable_list call_layer(const LayerArgs& args, bool checkpoint_gates);
variable_list call_layer_forward(const LayerArgs& args, bool save);
// grads: one for each result of the layer, or none; wanted: which of x, hx and weights, in this order, a gradient
// is wanted of.
struct BackwardArgs {
  const c10::List<optional<Tensor>>& grads;
  at::TensorList saved;
  const c10::List<bool>& wanted;
};
variable_list call_layer_backward(const LayerArgs& args, const BackwardArgs& backward);

// Functions of these arguments as implementations of the operators.
template <variable_list (*f)(const LayerArgs&, bool)>
variable_list as_layer(const Tensor& x, const optional<Tensor>& batch_sizes, at::TensorList hx,
                       at::TensorList weights, const std::string& cell, bool bidirectional, bool batch_first,
                       bool flag,  // checkpoint_gates, or save
                       const optional<Tensor>& mask, const optional<Tensor>& seed,
                       at::ArrayRef<double> zoneout, const optional<Tensor>& resets) {
  const LayerNoise noise{mask, seed, zoneout.vec()};
  return f({x, batch_sizes, hx, weights, find_cell(cell), bidirectional, batch_first, noise, resets}, flag);
}
template <variable_list (*f)(const LayerArgs&, const BackwardArgs&)>
variable_list as_layer_backward(const c10::List<optional<Tensor>>& grads, const Tensor& x,
                                const optional<Tensor>& batch_sizes, at::TensorList hx,
                                at::TensorList weights, const std::string& cell, bool bidirectional,
                                bool batch_first, at::TensorList saved, c10::List<bool> wanted,
                                const optional<Tensor>& mask, const optional<Tensor>& seed,
                                at::ArrayRef<double> zoneout, const optional<Tensor>& resets) {
  const LayerNoise noise{mask, seed, zoneout.vec()};
  return f({x, batch_sizes, hx, weights, find_cell(cell), bidirectional, batch_first, noise, resets},
           {grads, saved, wanted});
}

// Has this tensor memory of its own, and is no wrapper of a transform, a trace or a subclass?
inline bool is_plain(const Tensor& tensor) {
  constexpr c10::DispatchKeySet wrappers({c10::DispatchKey::Python, c10::DispatchKey::Functionalize,
                                          c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchBatched,
                                          c10::DispatchKey::FuncTorchGradWrapper});
  return !tensor.key_set().has_any(wrappers);
}

}  // namespace fastrnn::torch_ops
