// A layer and its backward in plain torch operations, from the same cell functions as the kernels.

#include <ATen/ATen.h>
#include <c10/util/irange.h>

#include <array>

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

// A layer's tensors, and what they say of its form.
struct Layer {
  const LayerArgs& args;
  WeightLayout layout = args.layout();
  bool step = args.is_step();
  bool batch_major = args.batch_first && !step && !args.packed();

  // Time in the first dimension: one tensor [n(t), width] a step.
  std::vector<Tensor> split(const Tensor& rows) const {
    if (args.packed()) {
      // One by one: a transform of torch.func may have wrapped them, and then they have no memory to read.
      std::vector<int64_t> n;
      for (const auto t : c10::irange(args.batch_sizes->size(0)))
        n.push_back(args.batch_sizes->select(0, t).item<int64_t>());
      return at::split_with_sizes(rows, n);
    }
    if (step) return {rows};
    return at::unbind(rows, batch_major ? 1 : 0);
  }
  Tensor join(const std::vector<Tensor>& steps) const {
    return step ? steps[0] : args.packed() ? at::cat(steps) : at::stack(steps, batch_major ? 1 : 0);
  }
  // One tensor a direction as one of the layer: states, or their gradients.
  Tensor join_states(const std::vector<Tensor>& states) const { return step ? states[0] : at::stack(states); }
};

// The states beside h.
template <class Cell>
using CellStates = std::array<Tensor, Cell::cell_states>;

// What the backward of a step needs of its forward, for n sequences.
template <class Cell>
struct Step {
  Tensor x, h_prev, s[Cell::saved + 1], h;  // h [n, H]: before a projection
  CellStates<Cell> c_prev, c;
  Tensor y;  // [n, P]
};

// One direction: the weights, and its steps, by their time.
template <class Cell>
struct Direction {
  WeightsOf<Tensor> w;
  bool reverse;
  std::vector<Step<Cell>> steps;
  Tensor h;            // final [B, P]
  CellStates<Cell> c;  // [B, H] each

  int64_t time(int64_t i) const { return reverse ? static_cast<int64_t>(steps.size()) - 1 - i : i; }
};

// The sequences that a step of a packed batch does not have keep their state, or its gradient.
Tensor put(const Tensor& updated, const Tensor& state) {
  return updated.sym_size(0) == state.sym_size(0)
             ? updated
             : at::cat({updated, state.slice_symint(0, updated.sym_size(0))});
}

Tensor first(const Tensor& state, const Tensor& like) { return state.slice_symint(0, 0, like.sym_size(0)); }

template <class States>
States first_of_each(const States& states, const Tensor& like) {
  States result;
  for (const auto k : c10::irange(states.size())) result[k] = first(states[k], like);
  return result;
}
template <class States>
void put_each(const States& updated, States& states) {
  for (const auto k : c10::irange(states.size())) states[k] = put(updated[k], states[k]);
}

template <class Cell>
Direction<Cell> run(const Layer& layer, int64_t d) {
  const LayerArgs& args = layer.args;
  Direction<Cell> result;
  const WeightsOf<Tensor>& w = result.w = layer.layout.of(args.weights, d);
  result.reverse = d == 1;
  const std::vector<Tensor> x = layer.split(args.x);
  const auto state = [&](size_t i, const c10::SymInt& size) {
    if (args.hx.empty()) return at::zeros_symint({x[0].sym_size(0), size}, args.x.options());
    return layer.step ? args.hx[i] : args.hx[i].select(0, d);
  };
  Tensor h = state(0, w.W_hh.sym_size(1));
  CellStates<Cell> c;
  for (const auto k : c10::irange(c.size())) c[k] = state(1 + k, w.W_ih.sym_size(0) / Cell::gates);
  result.steps.resize(x.size());
  for (const auto i : c10::irange(x.size())) {
    const int64_t t = result.time(i);
    Step<Cell>& step = result.steps[t];
    step.x = x[t];
    step.h_prev = first(h, x[t]);
    const std::vector<Tensor> gx = at::linear(x[t], w.W_ih, w.b_ih).chunk(Cell::gates, -1);
    const std::vector<Tensor> gh = at::linear(step.h_prev, w.W_hh, w.b_hh).chunk(Cell::gates, -1);
    step.c = step.c_prev = first_of_each(c, x[t]);
    cells::forward<Cell, TensorMath>(gx.data(), gh.data(), w.unit, step.h_prev, step.s, step.c.data(),
                                     step.h);
    step.y = layer.layout.projected ? at::linear(step.h, w.W_hr) : step.h;
    h = put(step.y, h);
    put_each(step.c, c);
  }
  result.h = h;
  result.c = c;
  return result;
}

template <class Cell>
variable_list forward(const Layer& layer, bool save) {
  std::vector<Direction<Cell>> directions;
  for (const auto d : c10::irange(layer.layout.D)) directions.push_back(run<Cell>(layer, d));
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
  const auto states = [&](const auto& of) {
    std::vector<Tensor> each;
    for (const Direction<Cell>& direction : directions) each.push_back(of(direction));
    return layer.join_states(each);
  };
  variable_list outputs{join(true, [](const auto& step) { return step.y; })};
  if (!layer.step) outputs.push_back(states([](const auto& direction) { return direction.h; }));
  for (const auto k : c10::irange(Cell::cell_states)) {
    outputs.push_back(states([&](const auto& direction) { return direction.c[k]; }));
  }
  if (!save) return outputs;
  const auto real = layer.args.x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  if (Cell::saved > 0) {
    outputs.push_back(join(false, [](const auto& step) {
                        return at::cat(at::TensorList(step.s, Cell::saved), -1);
                      }).to(real));
  }
  if (Cell::cell_states > 0) {
    outputs.push_back(join(false, [](const auto& step) { return at::cat(step.c, -1); }).to(real));
  }
  // As the kernels do: y again where the backward needs it, unless it is a step's own result.
  if (!layer.step && (Cell::saved == 0 || layer.args.packed() || directions[0].steps.size() > 1))
    outputs.push_back(outputs[0].clone());
  return outputs;
}

// Gradients of x, hx and weights, in this order. grads: one for each result, undefined for none.
template <class Cell>
variable_list backward(const Layer& layer, const std::vector<Tensor>& grads) {
  const LayerArgs& args = layer.args;
  const WeightLayout& layout = layer.layout;
  std::vector<Tensor> dx, dweights;
  std::vector<std::vector<Tensor>> dhx(args.info().states.size());  // of each state: of each direction
  for (const auto d : c10::irange(layout.D)) {
    const Direction<Cell> direction = run<Cell>(layer, d);
    const WeightsOf<Tensor>& w = direction.w;
    const int64_t T = static_cast<int64_t>(direction.steps.size());
    std::vector<Tensor> dy(T);
    if (grads[0].defined()) {
      dy = layer.split(layout.D == 1 ? grads[0] : grads[0].chunk(2, -1)[d]);
    }
    const auto of_state = [&](size_t i, const Tensor& state) {
      if (!grads[i].defined()) return at::zeros_like(state);
      return layer.step ? grads[i] : grads[i].select(0, d);
    };
    Tensor dh = layer.step ? at::zeros_like(direction.h) : of_state(1, direction.h);
    CellStates<Cell> dc;
    for (const auto k : c10::irange(dc.size())) {
      dc[k] = of_state(grads.size() - dc.size() + k, direction.c[k]);
    }

    std::vector<Tensor> x, h_prev, h, dgates_x(T), dgates_h(T), dy_total(T), dunit[kMostUnitVectors];
    for (int64_t i = T; i-- > 0;) {
      const int64_t t = direction.time(i);
      const Step<Cell>& step = direction.steps[t];
      dy_total[t] = first(dh, step.x);
      if (dy[t].defined()) dy_total[t] = dy_total[t] + dy[t];
      Tensor dgx[Cell::gates], dgh[Cell::gates], du[Cell::unit_vectors + 1], dh_prev;
      CellStates<Cell> dc_t = first_of_each(dc, step.x);
      Cell::template backward<TensorMath>(
          step.s, w.unit, step.h_prev, step.h, step.c_prev.data(), step.c.data(),
          layout.projected ? dy_total[t].matmul(w.W_hr) : dy_total[t], dc_t.data(), dgx, dgh, du, dh_prev);
      dgates_x[t] = at::cat(dgx, -1);
      dgates_h[t] = cells::has_split_gate<Cell> ? at::cat(dgh, -1) : dgates_x[t];
      for (const auto k : c10::irange(Cell::unit_vectors)) dunit[k].push_back(du[k]);
      Tensor dh_t = dgates_h[t].matmul(w.W_hh);
      if (Cell::reads_h) dh_t = dh_t + dh_prev;
      dh = put(dh_t, dh);
      put_each(dc_t, dc);
    }
    for (const Step<Cell>& step : direction.steps) {
      x.push_back(step.x);
      h_prev.push_back(step.h_prev);
      h.push_back(step.h);
    }
    const Tensor all_x = at::cat(dgates_x), all_h = at::cat(dgates_h);
    layout.for_each([&](const cells::Parameter& parameter, int, int k) {
      switch (parameter.kind) {
        case cells::ParameterKind::input_matrix:
          return dweights.push_back(all_x.t().matmul(at::cat(x)));
        case cells::ParameterKind::state_matrix:
          return dweights.push_back(all_h.t().matmul(at::cat(h_prev)));
        case cells::ParameterKind::input_bias:
          return dweights.push_back(all_x.sum(0));
        case cells::ParameterKind::state_bias:
          return dweights.push_back(all_h.sum(0));
        case cells::ParameterKind::unit_vector:
          return dweights.push_back(at::cat(dunit[k]).sum(0));
        case cells::ParameterKind::projection:
          return dweights.push_back(at::cat(dy_total).t().matmul(at::cat(h)));
      }
    });
    const Tensor dx_rows = layer.join(dgates_x).matmul(w.W_ih);
    dx.push_back(d == 0 ? dx_rows : dx[0] + dx_rows);
    dhx[0].push_back(dh);
    for (const auto k : c10::irange(dc.size())) dhx[1 + k].push_back(dc[k]);
  }
  variable_list result{dx.back()};
  for (const auto i : c10::irange(args.hx.size())) result.push_back(layer.join_states(dhx[i]));
  result.insert(result.end(), dweights.begin(), dweights.end());
  return result;
}

// Calls f with a cell's struct.
template <class F>
auto with_cell(int cell, const F& f) {
  using Result = decltype(f(cells::Lstm{}));
#define FASTRNN_CELL(Cell) [](const F& f) { return f(cells::Cell{}); },
  static constexpr Result (*calls[])(const F&) = {FASTRNN_FOR_EACH_CELL(FASTRNN_CELL)};
#undef FASTRNN_CELL
  return calls[cell](f);
}

}  // namespace

variable_list differentiable_forward(const LayerArgs& args, bool save) {
  const Layer layer{args};
  return with_cell(args.cell, [&](auto cell) { return forward<decltype(cell)>(layer, save); });
}

variable_list differentiable_backward(const LayerArgs& args, const BackwardArgs& given) {
  const Layer layer{args};
  variable_list grads;
  for (const optional<Tensor> grad : given.grads) grads.push_back(grad.value_or(Tensor()));
  const variable_list all =
      with_cell(args.cell, [&](auto cell) { return backward<decltype(cell)>(layer, grads); });
  variable_list result;
  for (const auto i : c10::irange(all.size())) {
    if (given.wanted[i]) result.push_back(all[i]);
  }
  return result;
}

}  // namespace fastrnn::torch_ops
