// A layer in plain torch operations, from the same cell functions as the kernels.

#include <ATen/ATen.h>
#include <c10/util/irange.h>

#include "cells/registry.h"
#include "torch/layer.h"

namespace fastrnn::torch_ops {
namespace {

struct TensorMath {
  static Tensor sigmoid(const Tensor& x) { return at::sigmoid(x); }
  static Tensor tanh(const Tensor& x) { return at::tanh(x); }
  static Tensor relu(const Tensor& x) { return at::relu(x); }
};

// Time in the first dimension: one tensor [n(t), I] a step.
std::vector<Tensor> split_steps(const Tensor& x, const optional<Tensor>& batch_sizes, bool batch_first) {
  if (batch_sizes) {
    const Tensor n = batch_sizes->contiguous();
    return at::split_with_sizes(x, at::IntArrayRef(n.const_data_ptr<int64_t>(), n.numel()));
  }
  if (x.dim() == 2) return {x};
  return at::unbind(x, batch_first ? 1 : 0);
}

struct DirectionResult {
  std::vector<Tensor> y;  // [n(t), P] a step
  Tensor h, c;            // final [B, P], [B, H]
};

template <class Cell>
DirectionResult sweep(const std::vector<Tensor>& x, bool reverse, Tensor h, Tensor c, at::TensorList w) {
  const WeightLayout layout{1, static_cast<int64_t>(w.size())};
  const Tensor b_ih = layout.bias() ? w[2] : Tensor(), b_hh = layout.bias() ? w[3] : Tensor();
  const int64_t T = static_cast<int64_t>(x.size());
  DirectionResult result;
  result.y.resize(T);
  // Sequences that a step of a packed batch does not have keep their state.
  const auto put = [](const Tensor& updated, const Tensor& state) {
    return updated.size(0) == state.size(0) ? updated : at::cat({updated, state.slice(0, updated.size(0))});
  };
  for (const auto i : c10::irange(T)) {
    const int64_t t = reverse ? T - 1 - i : i, n = x[t].size(0);
    const Tensor h_prev = h.slice(0, 0, n);
    const std::vector<Tensor> gx = at::linear(x[t], w[0], b_ih).chunk(Cell::gates, -1);
    const std::vector<Tensor> gh = at::linear(h_prev, w[1], b_hh).chunk(Cell::gates, -1);
    Tensor s[Cell::saved + 1], c_t, h_t;
    if (Cell::has_c) c_t = c.slice(0, 0, n);
    Cell::template forward<TensorMath>(gx.data(), gh.data(), h_prev, s, c_t, h_t);
    if (layout.projected()) h_t = at::linear(h_t, w[layout.each - 1]);
    result.y[t] = h_t;
    h = put(h_t, h);
    if (Cell::has_c) c = put(c_t, c);
  }
  result.h = h;
  result.c = c;
  return result;
}

template <class Cell>
variable_list layer(const Tensor& x, const optional<Tensor>& batch_sizes, at::TensorList hx,
                    at::TensorList weights, bool bidirectional, bool batch_first) {
  const WeightLayout layout = weight_layout(weights, bidirectional);
  const std::vector<Tensor> steps = split_steps(x, batch_sizes, batch_first);
  const bool step = x.dim() == 2 && !batch_sizes;
  std::vector<DirectionResult> directions;
  for (const auto d : c10::irange(layout.D)) {
    const at::TensorList w = weights.slice(d * layout.each, layout.each);
    const int64_t B = steps[0].size(0), P = w[1].size(1), H = w[0].size(0) / Cell::gates;
    const auto state = [&](size_t i, int64_t size) {
      if (hx.empty()) return at::zeros({B, size}, x.options());
      return step ? hx[i] : hx[i].select(0, d);
    };
    directions.push_back(sweep<Cell>(steps, d == 1, state(0, P), Cell::has_c ? state(1, H) : Tensor(), w));
  }
  std::vector<Tensor> y = directions[0].y;
  if (bidirectional) {
    for (const auto t : c10::irange(y.size())) y[t] = at::cat({y[t], directions[1].y[t]}, -1);
  }
  variable_list outputs{step ? y[0] : batch_sizes ? at::cat(y) : at::stack(y, batch_first ? 1 : 0)};
  const auto stack = [&](Tensor DirectionResult::* state) {
    if (step) return directions[0].*state;
    std::vector<Tensor> each;
    for (const DirectionResult& direction : directions) each.push_back(direction.*state);
    return at::stack(each);
  };
  if (!step) outputs.push_back(stack(&DirectionResult::h));
  if (Cell::has_c) outputs.push_back(stack(&DirectionResult::c));
  return outputs;
}

}  // namespace

variable_list differentiable_layer(const Tensor& x, const optional<Tensor>& batch_sizes, at::TensorList hx,
                                   at::TensorList weights, const std::string& cell, bool bidirectional,
                                   bool batch_first) {
#define FASTRNN_CELL(Cell)                                                              \
  if (cell == cells::Cell::name) {                                                      \
    return layer<cells::Cell>(x, batch_sizes, hx, weights, bidirectional, batch_first); \
  }
  FASTRNN_FOR_EACH_CELL(FASTRNN_CELL)
#undef FASTRNN_CELL
  TORCH_CHECK_VALUE(false, "cell: unknown name '", cell, "'");
}

}  // namespace fastrnn::torch_ops
