#include "torch/operators.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <c10/util/irange.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "torch/stack.h"

namespace fastrnn::torch_ops {
namespace {

// Dropout between layers. torch.nn draws its mask for time-major data, so this does too: same seed, same
// mask.
Tensor dropout_between(const Tensor& y, double p, bool batch_first) {
  if (!batch_first) return at::dropout(y, p, /*train=*/true);
  return at::dropout(y.transpose(0, 1).contiguous(), p, /*train=*/true).transpose(0, 1);
}

// The CPU has no kernels for float16: what comes in it is computed in float32, weights cast in every call.
bool is_half_on_cpu(const Tensor& input, at::TensorList weights) {
  return input.scalar_type() == at::kHalf && input.is_cpu() && !weights.empty() &&
         weights[0].scalar_type() == at::kHalf;
}

std::vector<Tensor> half_to_float(at::TensorList tensors, const char* name) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) {
    TORCH_CHECK(tensor.scalar_type() == at::kHalf, name, ": expected dtype Half as the input's, got ",
                tensor.scalar_type());
    result.push_back(tensor.to(at::kFloat));
  }
  return result;
}

variable_list to_half(variable_list results) {
  for (Tensor& result : results) result = result.to(at::kHalf);
  return results;
}

// What fastrnn::rnn takes beside tensors.
struct StackOptions {
  int cell;  // its index in the table of cells
  bool has_biases;
  int64_t num_layers;
  double dropout;
  bool train, bidirectional, batch_first, checkpoint_gates;
  double recurrent_dropout;
  std::vector<double> zoneout;  // none, or one for each state
  optional<Tensor> resets;
};

// Of a layer of B sequences, with torch's generator.
LayerNoise draw_noise(const StackOptions& options, const Tensor& x, const c10::SymInt& D,
                      const c10::SymInt& B, const c10::SymInt& P) {
  LayerNoise noise;
  if (options.train && options.recurrent_dropout > 0) {
    noise.mask =
        at::dropout(at::ones_symint({D, B, P}, x.options()), options.recurrent_dropout, /*train=*/true);
  }
  const auto& zoneout = options.zoneout;
  if (std::any_of(zoneout.begin(), zoneout.end(), [](double p) { return p > 0; })) {
    noise.zoneout = zoneout;
    if (options.train) {
      noise.seed = at::randint(std::numeric_limits<int64_t>::max(), {1}, x.options().dtype(at::kLong));
    }
  }
  return noise;
}

void check_probability(double p, const char* name) {
  TORCH_CHECK_VALUE(p >= 0 && p <= 1, name, ": expected a probability, got ", p);
}

variable_list run_stack(const Tensor& input, const optional<Tensor>& batch_sizes, at::TensorList hx,
                        at::TensorList weights, const StackOptions& options) {
  if (is_half_on_cpu(input, weights)) {
    return to_half(run_stack(input.to(at::kFloat), batch_sizes, half_to_float(hx, "hx"),
                             half_to_float(weights, "weights"), options));
  }
  const auto& [cell, has_biases, num_layers, dropout, train, bidirectional, batch_first, checkpoint_gates,
               recurrent_dropout, zoneout, resets] = options;
  const CellInfo& info = cpu::info_of(cell);
  TORCH_CHECK_VALUE(num_layers > 0, "num_layers: expected at least 1, got ", num_layers);
  check_probability(dropout, "dropout");
  check_probability(recurrent_dropout, "recurrent_dropout");
  for (const double p : zoneout) check_probability(p, "zoneout");
  TORCH_CHECK_VALUE(zoneout.empty() || static_cast<int>(zoneout.size()) == info.states.size(),
                    "zoneout: expected ", info.states.size(), " for the states of ", info.layer, ", got ",
                    zoneout.size());
  const WeightLayout layout = weight_layout(info, weights, bidirectional, num_layers);
  TORCH_CHECK(layout.bias == (has_biases && info.can(cells::Needs::bias)), "weights: expected ",
              has_biases ? "biases among them" : "no biases among them", ", got ", layout.each,
              " tensors for each layer and direction");
  const int64_t D = layout.D, each = layout.each;
  TORCH_CHECK(num_layers == 1 || info.has(cells::ParameterKind::input_matrix), "num_layers: expected 1 for ",
              info.name, ", which takes its gates' shares from the input, got ", num_layers);
  TORCH_CHECK_VALUE(zoneout.empty() || !layout.projected, "zoneout: expected none with a projection");
  layout.check_matrices(weights);
  const StackSizes sizes{
      info, num_layers, D, layout.I(weights), layout.H(weights), layout.P(weights), weights[0].scalar_type()};
  const auto run_layer = [&](int64_t layer, const Tensor& x, at::TensorList states, bool unbatched) {
    LayerArgs of_layer{x,    batch_sizes,   states,     weights.slice(layer * D * each, D * each),
                       cell, bidirectional, batch_first};
    if (resets) of_layer.resets = unbatched ? resets->unsqueeze(batch_first ? 0 : 1) : *resets;
    if (recurrent_dropout > 0 || !zoneout.empty()) {
      const c10::SymInt B = batch_sizes ? states[0].sym_size(1) : x.sym_size(batch_first ? 0 : 1);
      of_layer.noise = draw_noise(options, x, D, B, sizes.P);
    }
    variable_list outputs = call_layer(of_layer, checkpoint_gates);
    if (train && dropout > 0 && layer + 1 < num_layers)
      outputs[0] = dropout_between(outputs[0], dropout, batch_first && !batch_sizes);
    return outputs;
  };
  return run_layers(input, batch_sizes, hx, sizes, batch_first, run_layer, [] {});
}

variable_list run_step(const Tensor& input, at::TensorList hx, at::TensorList weights, int cell) {
  if (is_half_on_cpu(input, weights)) {
    return to_half(
        run_step(input.to(at::kFloat), half_to_float(hx, "hx"), half_to_float(weights, "weights"), cell));
  }
  const CellInfo& info = cpu::info_of(cell);
  check_step_dimensions(info, input);
  const WeightLayout layout = weight_layout(info, weights, false);
  TORCH_CHECK(!layout.projected, "weights: a cell has no W_hr, got ", weights.size(), " tensors");
  layout.check_matrices(weights);
  return run_one_step(input, hx, info, layout.I(weights), layout.H(weights),
                      [&](const Tensor& x, at::TensorList states) {
                        return call_layer({x, std::nullopt, states, weights, cell, false, false}, false);
                      });
}

// In a region of torch.autocast tensors are cast to its dtype, except float64; weights once in the region.
template <c10::DeviceType device>
struct Autocast {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast{device == at::kCUDA ? c10::DispatchKey::AutocastCUDA
                                                                           : c10::DispatchKey::AutocastCPU};

  template <class Tensors>
  auto operator()(const Tensors& tensors) const {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensors, device);
  }
};
// Tensors as they are.
struct AsGiven {
  template <class Tensors>
  const Tensors& operator()(const Tensors& tensors) const {
    return tensors;
  }
};

// The operators, whose tensors are cast first.
template <class Cast>
variable_list rnn_of(const Tensor& input, const optional<Tensor>& batch_sizes, at::TensorList hx,
                     at::TensorList weights, const std::string& cell, bool has_biases, int64_t num_layers,
                     double dropout, bool train, bool bidirectional, bool batch_first, bool checkpoint_gates,
                     double recurrent_dropout, at::ArrayRef<double> zoneout, const optional<Tensor>& resets) {
  const Cast cast;
  return run_stack(cast(input), batch_sizes, cast(hx), cast(weights),
                   {find_cell(cell), has_biases, num_layers, dropout, train, bidirectional, batch_first,
                    checkpoint_gates, recurrent_dropout, zoneout.vec(), resets});
}
template <class Cast>
variable_list cell_of(const Tensor& input, at::TensorList hx, at::TensorList weights,
                      const std::string& cell) {
  const Cast cast;
  return run_step(cast(input), cast(hx), cast(weights), find_cell(cell));
}

}  // namespace

TORCH_LIBRARY_IMPL(fastrnn, CompositeImplicitAutograd, m) {
  m.impl("rnn", rnn_of<AsGiven>);
  m.impl("cell", cell_of<AsGiven>);
}
// torch.vmap does not take compositions by itself.
TORCH_LIBRARY_IMPL(fastrnn, FuncTorchBatched, m) {
  m.impl("rnn", rnn_of<AsGiven>);
  m.impl("cell", cell_of<AsGiven>);
}
TORCH_LIBRARY_IMPL(fastrnn, AutocastCPU, m) {
  m.impl("rnn", rnn_of<Autocast<at::kCPU>>);
  m.impl("cell", cell_of<Autocast<at::kCPU>>);
}
TORCH_LIBRARY_IMPL(fastrnn, AutocastCUDA, m) {
  m.impl("rnn", rnn_of<Autocast<at::kCUDA>>);
  m.impl("cell", cell_of<Autocast<at::kCUDA>>);
}

}  // namespace fastrnn::torch_ops
