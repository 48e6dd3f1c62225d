#pragma once

// Layers for inference, whose weights were packed once.
//
//   fastrnn::frozen_rnn, frozen_cell  a stack of layers, a step of a cell; no derivatives
//   fastrnn::frozen_product           x [.., K] times W^T [K, N], which makes the gates' shares for cells without W_ih
//
// dtype: of input, states and results; weights: what the matrices are stored and multiplied as: float32, float64,
// bfloat16, int8 (times int8, of which each product makes its left factor) or int8_wide (times float32). packed: of each layer and direction
// what pack_frozen made. With all_states frozen_rnn returns more: of each layer its output, and, if the cell has further
// states, those after every step, [D, R, C*H].

#include "torch/schema.h"

namespace fastrnn::torch_ops {

// The parameters of one direction, in the order of its CellInfo, as one tensor of bytes (cpu/frozen.h). kind: `weights`. Matrices
// are of the dtype that they are stored as, and int8 ones have `scales`, one for each row, in the order of the matrices; the
// rest is of `dtype`.
Tensor pack_frozen(at::TensorList weights, at::TensorList scales, const std::string& cell,
                   at::ScalarType dtype, const std::string& kind);
// The same of a matrix [N, K] for frozen_product.
Tensor pack_frozen_matrix(const Tensor& matrix, const optional<Tensor>& scales, at::ScalarType dtype,
                          const std::string& kind);

using FrozenProductFunction = Tensor(const Tensor& x, const Tensor& packed, const std::string& weights,
                                     int64_t output_size);
using FrozenRnnFunction = variable_list(const Tensor& input, const optional<Tensor>& batch_sizes,
                                        at::TensorList hx, at::TensorList packed, const std::string& cell,
                                        at::ScalarType dtype, const std::string& weights, int64_t input_size,
                                        int64_t hidden_size, int64_t proj_size, int64_t num_layers,
                                        bool bidirectional, bool batch_first, at::ArrayRef<double> zoneout,
                                        const optional<Tensor>& resets, bool all_states);
using FrozenCellFunction = variable_list(const Tensor& input, at::TensorList hx, const Tensor& packed,
                                         const std::string& cell, at::ScalarType dtype,
                                         const std::string& weights, int64_t input_size, int64_t hidden_size);

}  // namespace fastrnn::torch_ops
