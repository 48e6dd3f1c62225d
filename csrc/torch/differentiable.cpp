// A layer and its backward in plain torch operations, from the same cell functions as the kernels.

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
  static Tensor zero_unless_positive(const Tensor& h, const Tensor& dh) {
    return at::threshold_backward(dh, h, 0);
  }
};

// A layer's tensors as they come, and what they say of its form.
struct Layer {
  const Tensor& x;
  const optional<Tensor>& batch_sizes;
  at::TensorList hx, weights;
  bool bidirectional, batch_first;
  WeightLayout layout = weight_layout(weights, bidirectional);
  bool step = x.dim() == 2 && !batch_sizes;
  bool batch_major = batch_first && !step && !batch_sizes;

  // Time in the first dimension: one tensor [n(t), width] a step.
  std::vector<Tensor> split(const Tensor& rows) const {
    if (batch_sizes) {
      // One by one: a transform of torch.func may have wrapped them, and then they have no memory to read.
      std::vector<int64_t> n;
      for (const auto t : c10::irange(batch_sizes->size(0)))
        n.push_back(batch_sizes->select(0, t).item<int64_t>());
      return at::split_with_sizes(rows, n);
    }
    if (step) return {rows};
    return at::unbind(rows, batch_major ? 1 : 0);
  }
  Tensor join(const std::vector<Tensor>& steps) const {
    return step ? steps[0] : batch_sizes ? at::cat(steps) : at::stack(steps, batch_major ? 1 : 0);
  }
  // One tensor a direction as one of the layer: states, or their gradients.
  Tensor join_states(const std::vector<Tensor>& states) const { return step ? states[0] : at::stack(states); }
};

// What the backward of a step needs of its forward, for n sequences. Without a gate c and s stay undefined.
template <class Cell>
struct Step {
  Tensor x, h_prev, c_prev, s[Cell::saved + 1], c, h;  // h [n, H]: before a projection
  Tensor y;                                            // [n, P]
};

// One direction: the weights, and its steps, by their time.
template <class Cell>
struct Direction {
  Tensor W_ih, W_hh, b_ih, b_hh, W_hr;
  bool reverse;
  std::vector<Step<Cell>> steps;
  Tensor h, c;  // final [B, P], [B, H]

  int64_t time(int64_t i) const { return reverse ? static_cast<int64_t>(steps.size()) - 1 - i : i; }
};

// The sequences that a step of a packed batch does not have keep their state, or its gradient.
Tensor put(const Tensor& updated, const Tensor& state) {
  return updated.sym_size(0) == state.sym_size(0)
             ? updated
             : at::cat({updated, state.slice_symint(0, updated.sym_size(0))});
}

Tensor first(const Tensor& state, const Tensor& like) { return state.slice_symint(0, 0, like.sym_size(0)); }

template <class Cell>
Direction<Cell> sweep(const Layer& layer, int64_t d) {
  const WeightLayout& layout = layer.layout;
  const at::TensorList w = layer.weights.slice(d * layout.each, layout.each);
  Direction<Cell> result;
  result.W_ih = w[0], result.W_hh = w[1];
  if (layout.bias()) result.b_ih = w[2], result.b_hh = w[3];
  if (layout.projected()) result.W_hr = w[layout.each - 1];
  result.reverse = d == 1;
  const std::vector<Tensor> x = layer.split(layer.x);
  const auto state = [&](size_t i, const c10::SymInt& size) {
    if (layer.hx.empty()) return at::zeros_symint({x[0].sym_size(0), size}, layer.x.options());
    return layer.step ? layer.hx[i] : layer.hx[i].select(0, d);
  };
  Tensor h = state(0, w[1].sym_size(1)), c;
  if (Cell::has_c) c = state(1, w[0].sym_size(0) / Cell::gates);
  result.steps.resize(x.size());
  for (const auto i : c10::irange(x.size())) {
    const int64_t t = result.time(i);
    Step<Cell>& step = result.steps[t];
    step.x = x[t];
    step.h_prev = first(h, x[t]);
    const std::vector<Tensor> gx = at::linear(x[t], w[0], result.b_ih).chunk(Cell::gates, -1);
    const std::vector<Tensor> gh = at::linear(step.h_prev, w[1], result.b_hh).chunk(Cell::gates, -1);
    if (Cell::has_c) step.c = step.c_prev = first(c, x[t]);
    cells::forward<Cell, TensorMath>(gx.data(), gh.data(), step.h_prev, step.s, step.c, step.h);
    step.y = layout.projected() ? at::linear(step.h, result.W_hr) : step.h;
    h = put(step.y, h);
    if (Cell::has_c) c = put(step.c, c);
  }
  result.h = h;
  result.c = c;
  return result;
}

template <class Cell>
variable_list forward(const Layer& layer, bool save) {
  std::vector<Direction<Cell>> directions;
  for (const auto d : c10::irange(layer.layout.D)) directions.push_back(sweep<Cell>(layer, d));
  // of(step) of every step and direction: side by side, or one direction after the other.
  const auto join = [&](bool side_by_side, const auto& of) {
    std::vector<std::vector<Tensor>> each(directions.size());
    for (const auto d : c10::irange(directions.size())) {
      for (const Step<Cell>& step : directions[d].steps) each[d].push_back(of(step));
    }
    if (side_by_side && each.size() == 2) {
      for (const auto t : c10::irange(each[0].size())) each[0][t] = at::cat({each[0][t], each[1][t]}, -1);
    }
    if (side_by_side) return layer.join(each[0]);
    std::vector<Tensor> joined;
    for (const auto& steps : each) {
      const Tensor rows = layer.join(steps);
      joined.push_back(rows.dim() == 3 ? rows.flatten(0, 1) : rows);
    }
    return at::stack(joined);
  };
  const auto states = [&](Tensor Direction<Cell>::* state) {
    std::vector<Tensor> each;
    for (const Direction<Cell>& direction : directions) each.push_back(direction.*state);
    return layer.join_states(each);
  };
  variable_list outputs{join(true, [](const auto& step) { return step.y; })};
  if (!layer.step) outputs.push_back(states(&Direction<Cell>::h));
  if (Cell::has_c) outputs.push_back(states(&Direction<Cell>::c));
  if (!save) return outputs;
  const auto real = layer.x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  if (Cell::saved > 0) {
    outputs.push_back(join(false, [](const auto& step) {
                        return at::cat(at::TensorList(step.s, Cell::saved), -1);
                      }).to(real));
  }
  if (Cell::has_c) outputs.push_back(join(false, [](const auto& step) { return step.c; }).to(real));
  // As the kernels do: y again where the backward needs it, unless it is a step's own result.
  if (!layer.step && (Cell::saved == 0 || layer.batch_sizes || directions[0].steps.size() > 1))
    outputs.push_back(outputs[0].clone());
  return outputs;
}

// Gradients of x, hx and weights, in this order.
template <class Cell>
variable_list backward(const Layer& layer, const std::vector<Tensor>& grads) {
  const WeightLayout& layout = layer.layout;
  std::vector<Tensor> dx, dh0, dc0, dweights;
  for (const auto d : c10::irange(layout.D)) {
    const Direction<Cell> direction = sweep<Cell>(layer, d);
    const int64_t T = static_cast<int64_t>(direction.steps.size());
    std::vector<Tensor> dy(T);
    if (grads[0].defined()) {
      dy = layer.split(layout.D == 1 ? grads[0] : grads[0].chunk(2, -1)[d]);
    }
    const auto of_state = [&](size_t i, const Tensor& state) {
      if (!grads[i].defined()) return at::zeros_like(state);
      return layer.step ? grads[i] : grads[i].select(0, d);
    };
    Tensor dh = layer.step ? at::zeros_like(direction.h) : of_state(1, direction.h), dc;
    if (Cell::has_c) dc = of_state(grads.size() - 1, direction.c);

    std::vector<Tensor> x, h_prev, h, dgates_x(T), dgates_h(T), dy_total(T);
    for (int64_t i = T; i-- > 0;) {
      const int64_t t = direction.time(i);
      const Step<Cell>& step = direction.steps[t];
      dy_total[t] = first(dh, step.x);
      if (dy[t].defined()) dy_total[t] = dy_total[t] + dy[t];
      Tensor dgx[Cell::gates], dgh[Cell::gates], dc_t, dh_prev;
      if (Cell::has_c) dc_t = first(dc, step.x);
      Cell::template backward<TensorMath>(
          step.s, step.h_prev, step.h, step.c_prev, step.c,
          layout.projected() ? dy_total[t].matmul(direction.W_hr) : dy_total[t], dc_t, dgx, dgh, dh_prev);
      dgates_x[t] = at::cat(dgx, -1);
      dgates_h[t] = cells::has_split_gate<Cell> ? at::cat(dgh, -1) : dgates_x[t];
      Tensor dh_t = dgates_h[t].matmul(direction.W_hh);
      if (Cell::reads_h) dh_t = dh_t + dh_prev;
      dh = put(dh_t, dh);
      if (Cell::has_c) dc = put(dc_t, dc);
    }
    for (const Step<Cell>& step : direction.steps) {
      x.push_back(step.x);
      h_prev.push_back(step.h_prev);
      h.push_back(step.h);
    }
    const Tensor all_x = at::cat(dgates_x), all_h = at::cat(dgates_h);
    dweights.push_back(all_x.t().matmul(at::cat(x)));
    dweights.push_back(all_h.t().matmul(at::cat(h_prev)));
    if (layout.bias()) {
      dweights.push_back(all_x.sum(0));
      dweights.push_back(all_h.sum(0));
    }
    if (layout.projected()) dweights.push_back(at::cat(dy_total).t().matmul(at::cat(h)));
    const Tensor dx_rows = layer.join(dgates_x).matmul(direction.W_ih);
    dx.push_back(d == 0 ? dx_rows : dx[0] + dx_rows);
    dh0.push_back(dh);
    dc0.push_back(dc);
  }
  variable_list result{dx.back()};
  if (!layer.hx.empty()) result.push_back(layer.join_states(dh0));
  if (layer.hx.size() == 2) result.push_back(layer.join_states(dc0));
  result.insert(result.end(), dweights.begin(), dweights.end());
  return result;
}

// Calls f with a cell's struct.
template <class F>
auto with_cell(const std::string& name, const F& f) {
#define FASTRNN_CELL(Cell) \
  if (name == cells::Cell::name) return f(cells::Cell{});
  FASTRNN_FOR_EACH_CELL(FASTRNN_CELL)
#undef FASTRNN_CELL
  TORCH_CHECK_VALUE(false, "cell: unknown name '", name, "'");
}

}  // namespace

variable_list differentiable_forward(const Tensor& x, const optional<Tensor>& batch_sizes, at::TensorList hx,
                                     at::TensorList weights, const std::string& cell, bool bidirectional,
                                     bool batch_first, bool save) {
  const Layer layer{x, batch_sizes, hx, weights, bidirectional, batch_first};
  return with_cell(cell, [&](auto c) { return forward<decltype(c)>(layer, save); });
}

variable_list differentiable_backward(const std::vector<Tensor>& grads, const Tensor& x,
                                      const optional<Tensor>& batch_sizes, at::TensorList hx,
                                      at::TensorList weights, const std::string& cell, bool bidirectional,
                                      bool batch_first, const c10::List<bool>& wanted) {
  const Layer layer{x, batch_sizes, hx, weights, bidirectional, batch_first};
  const variable_list all = with_cell(cell, [&](auto c) { return backward<decltype(c)>(layer, grads); });
  variable_list result;
  for (const auto i : c10::irange(all.size())) {
    if (wanted[i]) result.push_back(all[i]);
  }
  return result;
}

}  // namespace fastrnn::torch_ops
