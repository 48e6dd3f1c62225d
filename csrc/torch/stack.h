#pragma once

// A stack of layers and a step of a cell, whatever their weights are: what is checked of the other tensors, and how
// they reach a layer.

#include <ATen/ATen.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include "torch/schema.h"

namespace fastrnn::torch_ops {

// Errors that torch.nn has too begin with its words: people match them.

inline std::string state_name(const CellInfo& cell, int i) {
  return i < cell.states.size() ? cell.states[i] + std::string("_0") : "hx";
}

// A dtype and a size as Python writes them.
inline std::string dtype_name(at::ScalarType dtype) {
  return "torch." + std::string(c10::getDtypeNames(dtype).first);
}
inline std::string tuple(at::SymIntArrayRef size) {
  std::ostringstream text;
  for (const auto i : c10::irange(size.size())) text << (i ? ", " : "(") << size[i];
  return text.str() + ")";
}

// A compiled graph gets states of zeros: AOTInductor hands an empty list on as None.
inline bool is_traced(const Tensor& input) { return input.key_set().has(c10::DispatchKey::Python); }

// How many packed sequences there are. A graph knows it of a state only, and what is wrong with batch_sizes is
// found out in the layer.
inline c10::SymInt packed_batch(const Tensor& batch_sizes, const Tensor& h_0) {
  const bool is_vector =
      batch_sizes.is_cpu() && batch_sizes.dim() == 1 && batch_sizes.scalar_type() == at::kLong;
  if (is_vector && is_plain(batch_sizes) && is_plain(h_0) && batch_sizes.size(0) > 0)
    return batch_sizes.select(0, 0).item<int64_t>();
  return h_0.dim() > 1 ? h_0.sym_size(1) : c10::SymInt(0);
}

inline void check_state_dimensions(at::TensorList hx, int64_t expected) {
  if (std::all_of(hx.begin(), hx.end(), [&](const Tensor& state) { return state.dim() == expected; })) return;
  const char* batch = expected == 2 ? "unbatched" : "batched";
  TORCH_CHECK(hx.size() == 2, "For ", batch, " ", expected == 2 ? "2" : "3", "-D input, hx should also be ",
              expected, "-D but got ", hx[0].dim(), "-D tensor");
  TORCH_CHECK(false, "For ", batch, " ", expected == 2 ? "2" : "3", "-D input, hx and cx should also be ",
              expected, "-D but got (", hx[0].dim(), "-D, ", hx[1].dim(), "-D) tensors");
}

// What a stack of layers is, whatever its weights are.
struct StackSizes {
  const CellInfo& info;
  int64_t num_layers, D;
  c10::SymInt I, H, P;
  at::ScalarType dtype;
};

// Runs `run_layer(layer, x, states, unbatched)`, which returns y and the last states, for each layer. They may be empty
// until `finish()` returns.
template <class RunLayer, class Finish>
variable_list run_layers(const Tensor& input, const optional<Tensor>& batch_sizes, at::TensorList hx,
                         const StackSizes& sizes, bool batch_first, const RunLayer& run_layer,
                         const Finish& finish) {
  const auto& [info, num_layers, D, I, H, P, expected_dtype] = sizes;
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
  const at::ScalarType dtype = input.scalar_type();
  TORCH_CHECK_VALUE(dtype == expected_dtype, "RNN input dtype (", dtype_name(dtype),
                    ") does not match weight dtype (", dtype_name(expected_dtype),
                    "). Convert input: input.to(", dtype_name(expected_dtype),
                    "), or convert model: model.to(", dtype_name(dtype), ")");
  TORCH_CHECK(input.sym_size(-1) == I, "input.size(-1) must be equal to input_size. Expected ", I, ", got ",
              input.sym_size(-1));
  Tensor x = unbatched ? input.unsqueeze(batch_first ? 0 : 1) : input;
  if (!packed) {
    TORCH_CHECK(x.sym_size(batch_first ? 1 : 0) > 0,
                "Expected sequence length to be larger than 0 in RNN, got an input of size ",
                input.sym_sizes());
    check_state_dimensions(hx, unbatched ? 2 : 3);
  }

  const size_t count = info.states.size();
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
    variable_list outputs = run_layer(layer, x, layer_states, unbatched);
    x = outputs[0];
    finals.push_back(std::move(outputs));
  }
  finish();
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

inline void check_step_dimensions(const CellInfo& info, const Tensor& input) {
  TORCH_CHECK_VALUE(input.dim() == 1 || input.dim() == 2, info.layer,
                    "Cell: Expected input to be 1D or 2D, got ", input.dim(), "D instead");
}
// Runs `run(x, states)` for a step of a cell, [B, I] or [I].
template <class Run>
variable_list run_one_step(const Tensor& input, at::TensorList hx, const CellInfo& info, const c10::SymInt& I,
                           const c10::SymInt& H, const Run& run) {
  TORCH_CHECK(input.sym_size(-1) == I, "input has inconsistent input_size: got ", input.sym_size(-1),
              " expected ", I);
  for (const auto i : c10::irange(hx.size())) {
    const Tensor& state = hx[i];
    const auto name = [&] { return state_name(info, static_cast<int>(i)); };
    TORCH_CHECK_VALUE(state.dim() == 1 || state.dim() == 2, info.layer, "Cell: Expected ",
                      hx.size() == 1 ? "hidden" : "hx[" + std::to_string(i) + "]", " to be 1D or 2D, got ",
                      state.dim(), "D instead for ", name());
    TORCH_CHECK(input.dim() == 1 || (state.dim() == 2 && input.sym_size(0) == state.sym_size(0)),
                "Input batch size ", input.sym_size(0), " doesn't match hidden", i, " batch size ",
                state.sym_size(0), " of ", name());
    TORCH_CHECK(state.dim() == input.dim() && state.sym_size(-1) == H, "hidden", i,
                " has inconsistent hidden_size: got ", state.sym_size(input.dim() - 1), ", expected ", H,
                " for ", name());
  }
  if (input.dim() == 2) return run(input, hx);
  std::vector<Tensor> states;
  for (const Tensor& state : hx) states.push_back(state.unsqueeze(0));
  variable_list outputs = run(input.unsqueeze(0), states);
  for (Tensor& output : outputs) output = output.squeeze(0);
  return outputs;
}

}  // namespace fastrnn::torch_ops
