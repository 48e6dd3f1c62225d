#include "torch/operators.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <c10/util/irange.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <sstream>

namespace fastrnn::torch_ops {
namespace {

// Errors that torch.nn has too begin with its words: people match them.

std::string state_name(const CellInfo& cell, int i) {
  return i < cell.states.size() ? cell.states[i] + std::string("_0") : "hx";
}

// A dtype and a size as Python writes them.
std::string dtype_name(at::ScalarType dtype) {
  return "torch." + std::string(c10::getDtypeNames(dtype).first);
}
std::string tuple(at::SymIntArrayRef size) {
  std::ostringstream text;
  for (const auto i : c10::irange(size.size())) text << (i ? ", " : "(") << size[i];
  return text.str() + ")";
}

// A compiled graph gets states of zeros: AOTInductor hands an empty list on as None.
bool is_traced(const Tensor& input) { return input.key_set().has(c10::DispatchKey::Python); }

// How many packed sequences there are. A graph knows it of a state only, and what is wrong with batch_sizes is
// found out in the layer.
c10::SymInt packed_batch(const Tensor& batch_sizes, const Tensor& h_0) {
  const bool is_vector =
      batch_sizes.is_cpu() && batch_sizes.dim() == 1 && batch_sizes.scalar_type() == at::kLong;
  if (is_vector && is_plain(batch_sizes) && is_plain(h_0) && batch_sizes.size(0) > 0)
    return batch_sizes.select(0, 0).item<int64_t>();
  return h_0.dim() > 1 ? h_0.sym_size(1) : c10::SymInt(0);
}

void check_state_dimensions(at::TensorList hx, int64_t expected) {
  if (std::all_of(hx.begin(), hx.end(), [&](const Tensor& state) { return state.dim() == expected; })) return;
  const char* batch = expected == 2 ? "unbatched" : "batched";
  TORCH_CHECK(hx.size() == 2, "For ", batch, " ", expected == 2 ? "2" : "3", "-D input, hx should also be ",
              expected, "-D but got ", hx[0].dim(), "-D tensor");
  TORCH_CHECK(false, "For ", batch, " ", expected == 2 ? "2" : "3", "-D input, hx and cx should also be ",
              expected, "-D but got (", hx[0].dim(), "-D, ", hx[1].dim(), "-D) tensors");
}

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
  const bool packed = batch_sizes.has_value();
  const bool unbatched = !packed && input.dim() == 2;
  if (packed) {
    TORCH_CHECK_INDEX(batch_sizes->dim() != 1 || batch_sizes->sym_size(0) > 0,
                      "batch_sizes: expected a vector of at least one size, got none");
    TORCH_CHECK(input.dim() == 2, "input must have 2 dimensions, got ", input.dim(),
                ": the data of packed sequences is [sum of lengths, input_size]");
  } else {
    TORCH_CHECK_VALUE(input.dim() == 2 || input.dim() == 3, info.layer,
                      ": Expected input to be 2D or 3D, got ", input.dim(), "D ",
                      info.layer == std::string("RNN") ? "tensor " : "", "instead");
  }
  const at::ScalarType dtype = input.scalar_type(), expected_dtype = weights[0].scalar_type();
  TORCH_CHECK_VALUE(dtype == expected_dtype, "RNN input dtype (", dtype_name(dtype),
                    ") does not match weight dtype (", dtype_name(expected_dtype),
                    "). Convert input: input.to(", dtype_name(expected_dtype),
                    "), or convert model: model.to(", dtype_name(dtype), ")");
  TORCH_CHECK(input.sym_size(-1) == layout.I(weights),
              "input.size(-1) must be equal to input_size. Expected ", layout.I(weights), ", got ",
              input.sym_size(-1));
  Tensor x = unbatched ? input.unsqueeze(batch_first ? 0 : 1) : input;
  if (!packed) {
    TORCH_CHECK(x.sym_size(batch_first ? 1 : 0) > 0,
                "Expected sequence length to be larger than 0 in RNN, got an input of size ",
                input.sym_sizes());
    check_state_dimensions(hx, unbatched ? 2 : 3);
  }

  const size_t count = info.states.size();
  const c10::SymInt P = layout.P(weights), H = layout.H(weights);
  std::vector<Tensor> states;
  for (const auto i : c10::irange(hx.size())) {
    states.push_back(unbatched ? hx[i].unsqueeze(1) : hx[i]);
    const c10::SymInt B = packed ? packed_batch(*batch_sizes, states[0]) : x.sym_size(batch_first ? 0 : 1);
    const c10::SymInt expected[] = {num_layers * D, B, i == 0 ? P : H};
    TORCH_CHECK(states[i].sym_sizes() == at::SymIntArrayRef(expected), "Expected hidden",
                hx.size() == 1 ? "" : "[" + std::to_string(i) + "]", " size ", tuple(expected), ", got ",
                states[i].sym_sizes(), " for ", state_name(info, static_cast<int>(i)));
  }
  if (states.empty() && (packed || is_traced(x))) {
    TORCH_CHECK(!packed || batch_sizes->dim() == 1, "batch_sizes: expected a vector, got ",
                batch_sizes->sym_sizes());
    const c10::SymInt B =
        packed ? batch_sizes->select(0, 0).item().toSymInt() : x.sym_size(batch_first ? 0 : 1);
    for (const auto i : c10::irange(count))
      states.push_back(at::zeros_symint({num_layers * D, B, i == 0 ? P : H}, x.options()));
  }

  std::vector<variable_list> finals;
  for (const auto layer : c10::irange(num_layers)) {
    std::vector<Tensor> layer_states = states;
    if (num_layers > 1) {
      for (Tensor& state : layer_states) state = state.narrow(0, layer * D, D);
    }
    LayerArgs of_layer{x,    batch_sizes,   layer_states, weights.slice(layer * D * each, D * each),
                       cell, bidirectional, batch_first};
    if (resets) of_layer.resets = unbatched ? resets->unsqueeze(batch_first ? 0 : 1) : *resets;
    if (recurrent_dropout > 0 || !zoneout.empty()) {
      const c10::SymInt B = packed ? states[0].sym_size(1) : x.sym_size(batch_first ? 0 : 1);
      of_layer.noise = draw_noise(options, x, D, B, P);
    }
    variable_list outputs = call_layer(of_layer, checkpoint_gates);
    x = outputs[0];
    if (train && dropout > 0 && layer + 1 < num_layers)
      x = dropout_between(x, dropout, batch_first && !packed);
    finals.push_back(std::move(outputs));
  }
  variable_list result{unbatched ? x.squeeze(batch_first ? 0 : 1) : x};
  for (const auto i : c10::irange<size_t>(1, finals[0].size())) {
    Tensor state = finals[0][i];
    if (num_layers > 1) {
      std::vector<Tensor> layers;
      for (const variable_list& outputs : finals) layers.push_back(outputs[i]);
      state = at::cat(layers);
    }
    result.push_back(unbatched ? state.squeeze(1) : state);
  }
  return result;
}

variable_list run_step(const Tensor& input, at::TensorList hx, at::TensorList weights, int cell) {
  if (is_half_on_cpu(input, weights)) {
    return to_half(
        run_step(input.to(at::kFloat), half_to_float(hx, "hx"), half_to_float(weights, "weights"), cell));
  }
  const CellInfo& info = cpu::info_of(cell);
  TORCH_CHECK_VALUE(input.dim() == 1 || input.dim() == 2, info.layer,
                    "Cell: Expected input to be 1D or 2D, got ", input.dim(), "D instead");
  const WeightLayout layout = weight_layout(info, weights, false);
  TORCH_CHECK(!layout.projected, "weights: a cell has no W_hr, got ", weights.size(), " tensors");
  layout.check_matrices(weights);
  TORCH_CHECK(input.sym_size(-1) == layout.I(weights), "input has inconsistent input_size: got ",
              input.sym_size(-1), " expected ", layout.I(weights));
  for (const auto i : c10::irange(hx.size())) {
    const Tensor& state = hx[i];
    const auto name = [&] { return state_name(info, static_cast<int>(i)); };
    TORCH_CHECK_VALUE(state.dim() == 1 || state.dim() == 2, info.layer, "Cell: Expected ",
                      hx.size() == 1 ? "hidden" : "hx[" + std::to_string(i) + "]", " to be 1D or 2D, got ",
                      state.dim(), "D instead for ", name());
    TORCH_CHECK(input.dim() == 1 || (state.dim() == 2 && input.sym_size(0) == state.sym_size(0)),
                "Input batch size ", input.sym_size(0), " doesn't match hidden", i, " batch size ",
                state.sym_size(0), " of ", name());
    TORCH_CHECK(state.dim() == input.dim() && state.sym_size(-1) == layout.H(weights), "hidden", i,
                " has inconsistent hidden_size: got ", state.sym_size(input.dim() - 1), ", expected ",
                layout.H(weights), " for ", name());
  }
  if (input.dim() == 2) return call_layer({input, std::nullopt, hx, weights, cell, false, false}, false);
  std::vector<Tensor> states;
  for (const Tensor& state : hx) states.push_back(state.unsqueeze(0));
  variable_list outputs =
      call_layer({input.unsqueeze(0), std::nullopt, states, weights, cell, false, false}, false);
  for (Tensor& output : outputs) output = output.squeeze(0);
  return outputs;
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
