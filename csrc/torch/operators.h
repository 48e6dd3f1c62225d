#pragma once

#include "torch/schema.h"

namespace fastrnn::torch_ops {

// fastrnn::rnn and fastrnn::cell, as C++ calls them.
using RnnFunction = variable_list(const Tensor& input, const optional<Tensor>& batch_sizes, at::TensorList hx,
                                  at::TensorList weights, const std::string& cell, bool has_biases,
                                  int64_t num_layers, double dropout, bool train, bool bidirectional,
                                  bool batch_first, bool checkpoint_gates, double recurrent_dropout,
                                  at::ArrayRef<double> zoneout, const optional<Tensor>& resets);
using CellFunction = variable_list(const Tensor& input, at::TensorList hx, at::TensorList weights,
                                   const std::string& cell);

}  // namespace fastrnn::torch_ops
