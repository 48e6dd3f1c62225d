#include "torch/schema.h"

#include <c10/util/irange.h>
#include <torch/library.h>

#include <sstream>

namespace fastrnn::torch_ops {

int find_cell(const std::string& name) {
  // Most calls want the cell of the last one. Cells are only added.
  static thread_local int last = 0;
  const int count = cpu::cell_count();
  if (name == cpu::info_of(last).name) return last;
  for (const auto i : c10::irange(count)) {
    if (name == cpu::info_of(i).name) return last = i;
  }
  std::string known;
  for (const auto i : c10::irange(count)) known += (i > 0 ? ", " : "") + std::string(cpu::info_of(i).name);
  TORCH_CHECK_VALUE(false, "cell: expected one of ", known, ", got '", name, "'");
}

namespace {

// As messages list them: W_ih, W_hh[, b_ih, b_hh][, W_hr].
std::string list_parameters(const CellInfo& cell) {
  std::ostringstream text;
  cells::Needs open = cells::Needs::always;
  for (const cells::Parameter& parameter : cell.parameters) {
    const bool changes = parameter.needs != open;
    if (changes && open != cells::Needs::always) text << "]";
    if (changes && parameter.needs != cells::Needs::always) text << "[";
    if (parameter.symbol != cell.parameters[0].symbol) text << ", ";
    text << parameter.symbol;
    open = parameter.needs;
  }
  if (open != cells::Needs::always) text << "]";
  return text.str();
}

}  // namespace

WeightsOf<Tensor> WeightLayout::of(at::TensorList weights, int64_t d) const {
  WeightsOf<Tensor> named;
  for_each([&](const cells::Parameter& parameter, int place, int vectors) {
    const Tensor& tensor = weights[d * each + place];
    const int n = cell.vectors_of(parameter);
    named.of(parameter.kind, vectors) = tensor;
    for (int k = 0; n > 1 && k < n; ++k) named.unit[vectors + k] = tensor.reshape({n, -1}).select(0, k);
  });
  return named;
}

void WeightLayout::check_matrices(at::TensorList weights) const {
  for_each([&](const cells::Parameter& parameter, int place, int) {
    const bool is_matrix = parameter.kind == cells::ParameterKind::input_matrix ||
                           parameter.kind == cells::ParameterKind::state_matrix;
    TORCH_CHECK(!is_matrix || weights[place].dim() == 2, "weights: expected W_ih and W_hh to be matrices");
  });
}

WeightLayout weight_layout(const CellInfo& cell, at::TensorList weights, bool bidirectional, int64_t layers) {
  const int64_t D = bidirectional ? 2 : 1, count = static_cast<int64_t>(weights.size());
  for (const bool bias : {true, false}) {
    for (const bool projected : {false, true}) {
      if ((bias && !cell.can(cells::Needs::bias)) || (projected && !cell.can(cells::Needs::projection))) {
        continue;
      }
      const int64_t each = cell.count_parameters(bias, projected);
      if (each * layers * D == count) return {cell, D, each, bias, projected};
    }
  }
  TORCH_CHECK(false, "weights: expected ", list_parameters(cell), " for each of ", layers, " layer(s) and ",
              D, " direction(s), got ", count, " tensors");
}

namespace {

using LayerFunction = variable_list(const Tensor&, const optional<Tensor>&, at::TensorList, at::TensorList,
                                    const std::string&, bool, bool, bool, const optional<Tensor>&,
                                    const optional<Tensor>&, at::ArrayRef<double>, const optional<Tensor>&);
using LayerBackwardFunction = variable_list(const c10::List<optional<Tensor>>&, const Tensor&,
                                            const optional<Tensor>&, at::TensorList, at::TensorList,
                                            const std::string&, bool, bool, at::TensorList, c10::List<bool>,
                                            const optional<Tensor>&, const optional<Tensor>&,
                                            at::ArrayRef<double>, const optional<Tensor>&);

variable_list call(const c10::TypedOperatorHandle<LayerFunction>& op, const LayerArgs& args, bool flag) {
  return op.call(args.x, args.batch_sizes, args.hx, args.weights, args.info().name, args.bidirectional,
                 args.batch_first, flag, args.noise.mask, args.noise.seed, args.noise.zoneout, args.resets);
}

}  // namespace

variable_list call_layer(const LayerArgs& args, bool checkpoint_gates) {
  static const auto op = find_operator<LayerFunction>("fastrnn::layer");
  return call(op, args, checkpoint_gates);
}
variable_list call_layer_forward(const LayerArgs& args, bool save) {
  static const auto op = find_operator<LayerFunction>("fastrnn::layer_forward");
  return call(op, args, save);
}
variable_list call_layer_backward(const LayerArgs& args, const BackwardArgs& backward) {
  static const auto op = find_operator<LayerBackwardFunction>("fastrnn::layer_backward");
  return op.call(backward.grads, args.x, args.batch_sizes, args.hx, args.weights, args.info().name,
                 args.bidirectional, args.batch_first, backward.saved, backward.wanted, args.noise.mask,
                 args.noise.seed, args.noise.zoneout, args.resets);
}

TORCH_LIBRARY(fastrnn, m) {
  m.def(
      "rnn(Tensor input, Tensor? batch_sizes, Tensor[] hx, Tensor[] weights, str cell, bool has_biases, int "
      "num_layers, float dropout, bool train, bool bidirectional, bool batch_first, bool "
      "checkpoint_gates=False, float recurrent_dropout=0., float[] zoneout=[], Tensor? resets=None) -> "
      "Tensor[]");
  m.def("cell(Tensor input, Tensor[] hx, Tensor[] weights, str cell) -> Tensor[]");
  m.def(
      "layer(Tensor x, Tensor? batch_sizes, Tensor[] hx, Tensor[] weights, str cell, bool bidirectional, "
      "bool batch_first, bool checkpoint_gates=False, Tensor? mask=None, Tensor? seed=None, float[] "
      "zoneout=[], Tensor? resets=None) -> Tensor[]");
  m.def(
      "layer_forward(Tensor x, Tensor? batch_sizes, Tensor[] hx, Tensor[] weights, str cell, bool "
      "bidirectional, bool batch_first, bool save, Tensor? mask=None, Tensor? seed=None, float[] "
      "zoneout=[], Tensor? resets=None) -> Tensor[]");
  m.def(
      "layer_backward(Tensor?[] grads, Tensor x, Tensor? batch_sizes, Tensor[] hx, Tensor[] weights, str "
      "cell, bool bidirectional, bool batch_first, Tensor[] saved, bool[] wanted, Tensor? mask=None, Tensor? "
      "seed=None, float[] zoneout=[], Tensor? resets=None) -> Tensor[]");
}

}  // namespace fastrnn::torch_ops
