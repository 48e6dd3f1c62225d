// The operators that modules call: a stack of layers, and a single step. Both are composed of fastrnn::layer.

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <c10/util/irange.h>
#include <torch/library.h>

#include "torch/layer.h"

namespace fastrnn::torch_ops {
namespace {

const char* state_name(size_t i) { return i == 0 ? "h_0" : "c_0"; }

// A compiled graph gets states of zeros: AOTInductor hands an empty list on as None.
bool is_traced(const Tensor& input) { return input.key_set().has(c10::DispatchKey::Python); }

void check_input_size(const Tensor& input, const Tensor& W_ih) {
  TORCH_CHECK(input.sym_size(-1) == W_ih.sym_size(1),
              "input: expected last size input_size = ", W_ih.sym_size(1), ", got ", input.sym_size(-1));
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

}  // namespace

variable_list rnn(const Tensor& input, const optional<Tensor>& batch_sizes, at::TensorList hx,
                  at::TensorList weights, const std::string& cell, bool has_biases, int64_t num_layers,
                  double dropout, bool train, bool bidirectional, bool batch_first, bool checkpoint_gates) {
  if (is_half_on_cpu(input, weights)) {
    return to_half(rnn(input.to(at::kFloat), batch_sizes, half_to_float(hx, "hx"),
                       half_to_float(weights, "weights"), cell, has_biases, num_layers, dropout, train,
                       bidirectional, batch_first, checkpoint_gates));
  }
  const int64_t D = bidirectional ? 2 : 1;
  TORCH_CHECK_VALUE(num_layers > 0, "num_layers: expected at least 1, got ", num_layers);
  TORCH_CHECK_VALUE(dropout >= 0 && dropout <= 1, "dropout: expected a probability, got ", dropout);
  const int64_t count = static_cast<int64_t>(weights.size()), each = count / (num_layers * D);
  TORCH_CHECK(count == each * num_layers * D && each >= (has_biases ? 4 : 2) && each <= (has_biases ? 5 : 3),
              "weights: expected W_ih, W_hh", has_biases ? ", b_ih, b_hh" : "", "[, W_hr] for each of ",
              num_layers, " layer(s) and ", D, " direction(s), got ", count, " tensors");
  const bool packed = batch_sizes.has_value();
  const bool unbatched = !packed && input.dim() == 2;
  if (packed) {
    TORCH_CHECK(input.dim() == 2, "input: expected packed data with 2 dimensions, got ", input.dim());
  } else {
    TORCH_CHECK_VALUE(input.dim() == 2 || input.dim() == 3, "input: expected 2 or 3 dimensions, got ",
                      input.dim());
  }
  TORCH_CHECK_VALUE(input.scalar_type() == weights[0].scalar_type(), "input: expected dtype ",
                    weights[0].scalar_type(), " as the weights', got ", input.scalar_type());
  check_input_size(input, weights[0]);
  Tensor x = unbatched ? input.unsqueeze(batch_first ? 0 : 1) : input;
  if (!packed) {
    TORCH_CHECK(x.sym_size(batch_first ? 1 : 0) > 0, "input: expected a sequence length larger than 0");
  }

  std::vector<Tensor> states;
  for (const auto i : c10::irange(hx.size())) {
    TORCH_CHECK(hx[i].dim() == (unbatched ? 2 : 3), state_name(i), ": expected ", unbatched ? 2 : 3,
                " dimensions for ", unbatched ? "unbatched" : "batched", " input, got ", hx[i].dim());
    states.push_back(unbatched ? hx[i].unsqueeze(1) : hx[i]);
    const bool is_h = i == 0;
    const c10::SymInt B = packed ? states[0].sym_size(1) : x.sym_size(batch_first ? 0 : 1);
    const c10::SymInt width =
        is_h ? weights[1].sym_size(1) : (each % 2 ? weights[each - 1].sym_size(-1) : weights[1].sym_size(1));
    const c10::SymInt expected[] = {num_layers * D, B, width};
    TORCH_CHECK(states[i].sym_sizes() == at::SymIntArrayRef(expected), state_name(i), ": expected size ",
                at::SymIntArrayRef(expected), ", got ", states[i].sym_sizes());
  }
  if (states.empty() && (packed || is_traced(x))) {
    TORCH_CHECK(!packed || (batch_sizes->dim() == 1 && batch_sizes->sym_size(0) > 0),
                "batch_sizes: expected a vector of at least one size, got ", batch_sizes->sym_sizes());
    const c10::SymInt B =
        packed ? batch_sizes->select(0, 0).item().toSymInt() : x.sym_size(batch_first ? 0 : 1);
    states.push_back(at::zeros_symint({num_layers * D, B, weights[1].sym_size(1)}, x.options()));
    if (cell == "lstm") {
      const c10::SymInt H = each % 2 ? weights[each - 1].sym_size(-1) : weights[1].sym_size(1);
      states.push_back(at::zeros_symint({num_layers * D, B, H}, x.options()));
    }
  }

  std::vector<variable_list> finals;
  for (const auto layer : c10::irange(num_layers)) {
    std::vector<Tensor> layer_states = states;
    if (num_layers > 1) {
      for (Tensor& state : layer_states) state = state.narrow(0, layer * D, D);
    }
    variable_list outputs =
        layer_operator().call(x, batch_sizes, layer_states, weights.slice(layer * D * each, D * each), cell,
                              bidirectional, batch_first, checkpoint_gates);
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

variable_list cell_step(const Tensor& input, at::TensorList hx, at::TensorList weights,
                        const std::string& cell) {
  if (is_half_on_cpu(input, weights)) {
    return to_half(
        cell_step(input.to(at::kFloat), half_to_float(hx, "hx"), half_to_float(weights, "weights"), cell));
  }
  TORCH_CHECK_VALUE(input.dim() == 1 || input.dim() == 2, "input: expected 1 or 2 dimensions, got ",
                    input.dim());
  TORCH_CHECK(weights.size() == 2 || weights.size() == 4, "weights: expected W_ih, W_hh[, b_ih, b_hh], got ",
              weights.size(), " tensors");
  check_input_size(input, weights[0]);
  for (const auto i : c10::irange(hx.size())) {
    TORCH_CHECK_VALUE(hx[i].dim() == 1 || hx[i].dim() == 2, state_name(i),
                      ": expected 1 or 2 dimensions, got ", hx[i].dim());
    TORCH_CHECK(hx[i].dim() == input.dim(), state_name(i), ": expected ", input.dim(),
                " dimension(s) as the input, got ", hx[i].dim());
  }
  if (input.dim() == 2)
    return layer_operator().call(input, std::nullopt, hx, weights, cell, false, false, false);
  std::vector<Tensor> states;
  for (const Tensor& state : hx) states.push_back(state.unsqueeze(0));
  variable_list outputs =
      layer_operator().call(input.unsqueeze(0), std::nullopt, states, weights, cell, false, false, false);
  for (Tensor& output : outputs) output = output.squeeze(0);
  return outputs;
}

namespace {

// In a region of torch.autocast tensors are cast to its dtype, except float64; weights once in the region.
template <c10::DeviceType device>
struct Autocast {
  static constexpr auto key =
      device == at::kCUDA ? c10::DispatchKey::AutocastCUDA : c10::DispatchKey::AutocastCPU;

  template <class Tensors>
  static auto cast(const Tensors& tensors) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensors, device);
  }

  static variable_list rnn(const Tensor& input, const optional<Tensor>& batch_sizes, at::TensorList hx,
                           at::TensorList weights, const std::string& cell, bool has_biases,
                           int64_t num_layers, double dropout, bool train, bool bidirectional,
                           bool batch_first, bool checkpoint_gates) {
    c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
    return torch_ops::rnn(cast(input), batch_sizes, cast(hx), cast(weights), cell, has_biases, num_layers,
                          dropout, train, bidirectional, batch_first, checkpoint_gates);
  }

  static variable_list cell_step(const Tensor& input, at::TensorList hx, at::TensorList weights,
                                 const std::string& cell) {
    c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
    return torch_ops::cell_step(cast(input), cast(hx), cast(weights), cell);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(fastrnn, CompositeImplicitAutograd, m) {
  m.impl("rnn", rnn);
  m.impl("cell", cell_step);
}
// torch.vmap does not take compositions by itself.
TORCH_LIBRARY_IMPL(fastrnn, FuncTorchBatched, m) {
  m.impl("rnn", rnn);
  m.impl("cell", cell_step);
}
TORCH_LIBRARY_IMPL(fastrnn, AutocastCPU, m) {
  m.impl("rnn", Autocast<at::kCPU>::rnn);
  m.impl("cell", Autocast<at::kCPU>::cell_step);
}
TORCH_LIBRARY_IMPL(fastrnn, AutocastCUDA, m) {
  m.impl("rnn", Autocast<at::kCUDA>::rnn);
  m.impl("cell", Autocast<at::kCUDA>::cell_step);
}

}  // namespace fastrnn::torch_ops
