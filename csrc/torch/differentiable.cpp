// A layer and its backward in plain torch operations, from the same cell functions as the kernels.

#include <ATen/ATen.h>
#include <c10/util/irange.h>

#include <array>

#include "core/random.h"
#include "torch/layer.h"

namespace fastrnn::torch_ops {
namespace {

struct TensorMath {
  static Tensor sigmoid(const Tensor& x) { return at::sigmoid(x); }
  static Tensor tanh(const Tensor& x) { return at::tanh(x); }
  static Tensor relu(const Tensor& x) { return at::relu(x); }
  static Tensor exp(const Tensor& x) { return at::exp(x); }
  static Tensor log_sigmoid(const Tensor& x) { return at::log_sigmoid(x); }
  static Tensor if_positive(const Tensor& x, const Tensor& a, const Tensor& b) {
    return at::where(x <= 0, b, a);
  }
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

// Numbers normalised over the last dimension, without gain and bias.
struct Normalised {
  Tensor value, scale;

  Normalised() = default;
  explicit Normalised(const Tensor& x) {
    const Tensor deviation = x - x.mean(-1, true);
    scale = ((deviation * deviation).mean(-1, true) + cells::kNormEps).rsqrt();
    value = deviation * scale;
  }
  Tensor backward(const Tensor& d) const {
    return scale * (d - d.mean(-1, true) - value * (d * value).mean(-1, true));
  }
};

// The states beside h.
template <class Cell>
using CellStates = std::array<Tensor, Cell::cell_states>;

// What the backward of a step needs of its forward, for n sequences.
template <class Cell>
struct Step {
  Tensor x, h_prev, s[Cell::saved + 1],
      h;                       // h [n, H]: as the cell computes it, before zoneout or a projection
  CellStates<Cell> c_prev, c;  // c: before zoneout
  Tensor read, v;              // what W_hh multiplies, and its late gates' rows
  Normalised product, of_c;
  std::array<Tensor, 1 + Cell::cell_states> kept;  // zoneout's factors of the states before
  Tensor y;                                        // [n, P]
};

// One direction: the weights, and its steps, by their time.
template <class Cell>
struct Direction {
  WeightsOf<Tensor> w;
  std::vector<Tensor> resets;  // of each step, or none
  Tensor mask;                 // [B, P] or undefined
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

// States before step t, or their gradients, with zeros where a sequence begins anew there.
template <class Cell>
Tensor begin_anew(const Direction<Cell>& direction, int64_t t, const Tensor& state) {
  const int64_t later = direction.reverse ? t + 1 : t;
  if (later >= static_cast<int64_t>(direction.resets.size())) return state;
  const Tensor& marks = direction.resets[later];
  return put(first(state, marks).masked_fill(marks.unsqueeze(-1), 0), state);
}

// Rows of a tensor with a gate's H in each: those of gates [begin, end).
template <class Cell>
Tensor rows_of_gates(const Tensor& rows, int begin, int end) {
  if (!rows.defined()) return {};
  const c10::SymInt H = rows.sym_size(0) / Cell::gates;
  return rows.slice_symint(0, begin * H, end * H);
}
Tensor times(const Tensor& x, const Tensor& factor) { return factor.defined() ? x * first(factor, x) : x; }
Tensor blend(const Tensor& kept, const Tensor& before, const Tensor& computed) {
  return kept.defined() ? kept * before + (1 - kept) * computed : computed;
}

// The gates' shares and the cell of one step.
template <class Cell>
void compute(const Direction<Cell>& direction, Step<Cell>& step, const Tensor& gx_rows) {
  constexpr int G = Cell::gates;
  const WeightsOf<Tensor>& w = direction.w;
  const std::vector<Tensor> gx = gx_rows.chunk(G, -1);
  step.read = times(step.h_prev, direction.mask);
  step.c = step.c_prev;
  if constexpr (Cell::late_gates > 0) {
    constexpr int E = G - Cell::late_gates;
    const auto shares = [&](const Tensor& read, int begin, int end) {
      return at::linear(read, rows_of_gates<Cell>(w.W_hh, begin, end),
                        rows_of_gates<Cell>(w.b_hh, begin, end))
          .chunk(end - begin, -1);
    };
    std::vector<Tensor> a = shares(step.read, 0, E);
    for (const auto g : c10::irange(E)) a[g] = gx[g] + a[g];
    Cell::template activate<TensorMath>(a.data(), step.h_prev, step.s, step.v);
    step.v = times(step.v, direction.mask);
    a = shares(step.v, E, G);
    for (const auto g : c10::irange(Cell::late_gates)) a[g] = gx[E + g] + a[g];
    Cell::template output<TensorMath>(a.data(), step.h_prev, step.s, step.h);
  } else if constexpr (Cell::normalised) {
    using Inner = typename Cell::Inner;
    const Tensor product = at::linear(step.read, w.W_hh);
    step.product = Normalised(product);
    std::vector<Tensor> gh = step.product.value.chunk(G, -1), a(G);
    for (const auto g : c10::irange(G)) gh[g] = gh[g] * w.unit[g], a[g] = gx[g] + gh[g];
    if constexpr (cells::has_split_gate<Inner>) {
      Inner::template activate<TensorMath>(gx.data(), gh.data(), w.unit, step.s, step.c.data());
    } else {
      Inner::template activate<TensorMath>(a.data(), w.unit, step.s, step.c.data());
    }
    const std::vector<Tensor> products = product.chunk(G, -1);
    std::copy(products.begin(), products.end(), step.s + Inner::saved);
    CellStates<Cell> c = step.c;
    if constexpr (Cell::cell_states > 0) {
      step.of_c = Normalised(c[0]);
      c[0] = step.of_c.value * w.unit[G] + w.unit[G + 1];
    }
    Inner::template output<TensorMath>(step.s, w.unit, step.h_prev, c.data(), step.h);
  } else {
    const std::vector<Tensor> gh =
        (w.W_hh.defined() ? at::linear(step.read, w.W_hh, w.b_hh) : step.read).chunk(G, -1);
    cells::forward<Cell, TensorMath>(gx.data(), gh.data(), w.unit, step.h_prev, step.s, step.c.data(),
                                     step.h);
  }
}

// Zoneout's factors of state k before step t: [n, H], or undefined without zoneout of it.
Tensor zoneout_factors(const Layer& layer, int64_t d, int64_t t, int64_t T, int64_t B, int64_t R,
                       int64_t first_row, int64_t n, int64_t H, int k) {
  const LayerNoise& noise = layer.args.noise;
  const Tensor& x = layer.args.x;
  if (noise.zoneout.empty() || noise.zoneout[k] == 0) return {};
  if (!noise.seed) return at::full({n, H}, noise.zoneout[k], x.options());
  const auto seed = static_cast<uint64_t>(noise.seed->item<int64_t>());
  const Tensor factors = at::empty({n, H}, at::kDouble);
  double* to = factors.mutable_data_ptr<double>();
  for (const auto b : c10::irange(n)) {
    const int64_t row = layer.args.packed()          ? first_row + b
                        : layer.batch_major && B > 1 ? b * T + t
                                                     : t * B + b;
    for (const auto unit : c10::irange(H)) {
      *to++ = keeps_state(seed, (d * R + row) * H + unit, k, noise.zoneout[k]);
    }
  }
  return factors.to(x.options());
}

template <class Cell>
Direction<Cell> run(const Layer& layer, int64_t d) {
  const LayerArgs& args = layer.args;
  Direction<Cell> result;
  const WeightsOf<Tensor>& w = result.w = layer.layout.of(args.weights, d);
  result.reverse = d == 1;
  if (args.noise.mask) result.mask = args.noise.mask->select(0, d);
  if (args.resets) result.resets = layer.split(*args.resets);
  const std::vector<Tensor> x = layer.split(args.x);
  const c10::SymInt P = layer.layout.P(args.weights), H = layer.layout.H(args.weights);
  const auto state = [&](size_t i, const c10::SymInt& size) {
    if (args.hx.empty()) return at::zeros_symint({x[0].sym_size(0), size}, args.x.options());
    return layer.step ? args.hx[i] : args.hx[i].select(0, d);
  };
  Tensor h = state(0, P);
  CellStates<Cell> c;
  for (const auto k : c10::irange(c.size())) c[k] = state(1 + k, H);
  result.steps.resize(x.size());
  std::vector<int64_t> first_rows;
  int64_t R = 0;
  for (const Tensor& rows : x) {
    if (args.noise.zoneout.empty()) break;
    first_rows.push_back(R);
    R += rows.size(0);
  }
  for (const auto i : c10::irange(x.size())) {
    const int64_t t = result.time(i);
    Step<Cell>& step = result.steps[t];
    step.x = x[t];
    h = begin_anew(result, t, h);
    for (Tensor& state : c) state = begin_anew(result, t, state);
    step.h_prev = first(h, x[t]);
    step.c_prev = first_of_each(c, x[t]);
    compute(result, step,
            w.W_ih.defined() ? at::linear(x[t], w.W_ih, w.b_ih) : x[t].chunk(layer.layout.D, -1)[d]);
    step.y = layer.layout.projected ? at::linear(step.h, w.W_hr) : step.h;
    CellStates<Cell> c_after = step.c;
    if (!args.noise.zoneout.empty()) {
      for (const auto k : c10::irange<int>(1 + Cell::cell_states)) {
        step.kept[k] = zoneout_factors(layer, d, t, static_cast<int64_t>(x.size()), x[0].size(0), R,
                                       first_rows[t], x[t].size(0), H.expect_int(), k);
      }
      step.y = blend(step.kept[0], step.h_prev, step.h);
      for (const auto k : c10::irange(c.size()))
        c_after[k] = blend(step.kept[1 + k], step.c_prev[k], step.c[k]);
    }
    h = put(step.y, h);
    put_each(c_after, c);
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
  const bool zoned = !layer.args.noise.zoneout.empty();
  if (Cell::cell_states > 0) {
    outputs.push_back(join(false, [](const auto& step) {
                        CellStates<Cell> c = step.c;
                        for (const auto k : c10::irange(c.size())) {
                          c[k] = blend(step.kept[1 + k], step.c_prev[k], c[k]);
                        }
                        return at::cat(c, -1);
                      }).to(real));
  }
  if (zoned && (Cell::saved == 0 || Cell::cell_states > 0)) {
    outputs.push_back(join(false, [](const auto& step) {
                        std::vector<Tensor> computed(step.c.begin(), step.c.end());
                        if (Cell::saved == 0) computed.insert(computed.begin(), step.h);
                        return at::cat(computed, -1);
                      }).to(real));
  }
  // As the kernels do: y again where the backward needs it, unless it is a step's own result.
  if (!layer.step && (Cell::saved == 0 || layer.args.packed() || directions[0].steps.size() > 1))
    outputs.push_back(outputs[0].clone());
  return outputs;
}

// The gradients that the cell of a step passes on.
template <class Cell>
struct StepGradients {
  Tensor dgx, dgh;  // [n, GH]
  Tensor du[Cell::unit_vectors + 1], dh_prev;
};

// dh, dc: of the step's states; turns dc into the gradients of those before.
template <class Cell>
StepGradients<Cell> differentiate(const Direction<Cell>& direction, const Step<Cell>& step, const Tensor& dh,
                                  CellStates<Cell>& dc) {
  constexpr int G = Cell::gates;
  const WeightsOf<Tensor>& w = direction.w;
  StepGradients<Cell> result;
  Tensor dgx[G], dgh[G];
  if constexpr (Cell::late_gates > 0) {
    constexpr int E = G - Cell::late_gates;
    Cell::template backward_output<TensorMath>(step.s, step.h_prev, dh, dgx, result.dh_prev);
    const Tensor dv =
        at::cat(at::TensorList(dgx + E, Cell::late_gates), -1).matmul(rows_of_gates<Cell>(w.W_hh, E, G));
    Tensor v;
    Cell::template backward_activate<TensorMath>(step.s, step.h_prev, times(dv, direction.mask), dgx,
                                                 result.dh_prev, v);
  } else if constexpr (Cell::normalised) {
    using Inner = typename Cell::Inner;
    if constexpr (Cell::cell_states > 0) {
      Tensor dc_of_h;
      const Tensor c = step.of_c.value * w.unit[G] + w.unit[G + 1];
      Inner::template backward_output<TensorMath>(step.s, c, dh, dgx, dc_of_h);
      result.du[G] = dc_of_h * step.of_c.value;
      result.du[G + 1] = dc_of_h;
      dc[0] = dc[0] + step.of_c.backward(dc_of_h * w.unit[G]);
      Inner::template backward_gates<TensorMath>(step.s, step.c_prev[0], dc[0], dgx);
      result.dh_prev = at::zeros_like(dh);
    } else {
      Inner::template backward<TensorMath>(step.s, w.unit, step.h_prev, step.h, step.c_prev.data(),
                                           step.c.data(), dh, dc.data(), dgx, dgh, result.du, result.dh_prev);
    }
    const std::vector<Tensor> product = step.product.value.chunk(G, -1);
    std::vector<Tensor> d(G);
    for (const auto g : c10::irange(G)) {
      const Tensor& share = cells::has_split_gate<Inner> ? dgh[g] : dgx[g];
      result.du[g] = share * product[g];
      d[g] = share * w.unit[g];
    }
    result.dgh = step.product.backward(at::cat(d, -1));
  } else {
    const Tensor& h_prev = w.W_hh.defined() ? step.h_prev : step.read;
    Cell::template backward<TensorMath>(step.s, w.unit, h_prev, step.h, step.c_prev.data(), step.c.data(), dh,
                                        dc.data(), dgx, dgh, result.du, result.dh_prev);
    if (cells::has_split_gate<Cell>) result.dgh = at::cat(dgh, -1);
  }
  result.dgx = at::cat(dgx, -1);
  if (!result.dgh.defined()) result.dgh = result.dgx;
  return result;
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

    std::vector<Tensor> x, read, v, h, dgates_x(T), dgates_h(T), dy_total(T), dunit[kMostUnitVectors];
    for (int64_t i = T; i-- > 0;) {
      const int64_t t = direction.time(i);
      const Step<Cell>& step = direction.steps[t];
      dy_total[t] = first(dh, step.x);
      if (dy[t].defined()) dy_total[t] = dy_total[t] + dy[t];
      CellStates<Cell> dc_t = first_of_each(dc, step.x);
      const CellStates<Cell> dc_after = dc_t;
      const auto to_cell = [&](int k, const Tensor& d) {
        return step.kept[k].defined() ? (1 - step.kept[k]) * d : d;
      };
      const auto to_before = [&](int k, const Tensor& d, const Tensor& of_cell) {
        return step.kept[k].defined() ? of_cell + step.kept[k] * d : of_cell;
      };
      for (const auto k : c10::irange<int>(dc_t.size())) dc_t[k] = to_cell(1 + k, dc_t[k]);
      const StepGradients<Cell> found = differentiate(
          direction, step, to_cell(0, layout.projected ? dy_total[t].matmul(w.W_hr) : dy_total[t]), dc_t);
      for (const auto k : c10::irange<int>(dc_t.size())) dc_t[k] = to_before(1 + k, dc_after[k], dc_t[k]);
      dgates_x[t] = found.dgx;
      dgates_h[t] = found.dgh;
      for (const auto k : c10::irange(Cell::unit_vectors)) dunit[k].push_back(found.du[k]);
      Tensor dh_t = found.dgh;
      if (w.W_hh.defined()) {
        constexpr int E = Cell::gates - Cell::late_gates;
        dh_t = dh_t.narrow_symint(-1, 0, dh_t.sym_size(-1) / Cell::gates * E)
                   .matmul(rows_of_gates<Cell>(w.W_hh, 0, E));
      }
      dh_t = times(dh_t, direction.mask);
      if (Cell::reads_h && found.dh_prev.defined()) dh_t = dh_t + found.dh_prev;
      dh = begin_anew(direction, t, put(to_before(0, dy_total[t], dh_t), dh));
      put_each(dc_t, dc);
      for (Tensor& gradient : dc) gradient = begin_anew(direction, t, gradient);
    }
    for (const Step<Cell>& step : direction.steps) {
      x.push_back(step.x);
      read.push_back(step.read);
      if (Cell::late_gates > 0) v.push_back(step.v);
      h.push_back(step.h);
    }
    const Tensor all_x = at::cat(dgates_x), all_h = at::cat(dgates_h);
    layout.for_each([&](const cells::Parameter& parameter, int, int k) {
      switch (parameter.kind) {
        case cells::ParameterKind::input_matrix:
          return dweights.push_back(all_x.t().matmul(at::cat(x)));
        case cells::ParameterKind::state_matrix: {
          if (Cell::late_gates == 0) return dweights.push_back(all_h.t().matmul(at::cat(read)));
          constexpr int E = Cell::gates - Cell::late_gates;
          const Tensor rows = all_h.t();
          return dweights.push_back(at::cat({rows_of_gates<Cell>(rows, 0, E).matmul(at::cat(read)),
                                             rows_of_gates<Cell>(rows, E, Cell::gates).matmul(at::cat(v))}));
        }
        case cells::ParameterKind::input_bias:
          return dweights.push_back(all_x.sum(0));
        case cells::ParameterKind::state_bias:
          return dweights.push_back(all_h.sum(0));
        case cells::ParameterKind::unit_vectors:
        case cells::ParameterKind::gate_vector: {
          std::vector<Tensor> sums;
          for (const auto j : c10::irange(layout.cell.vectors_of(parameter))) {
            sums.push_back(at::cat(dunit[k + j]).sum(0));
          }
          return dweights.push_back(parameter.rows > 0 ? at::stack(sums) : at::cat(sums));
        }
        case cells::ParameterKind::projection:
          return dweights.push_back(at::cat(dy_total).t().matmul(at::cat(h)));
      }
    });
    const Tensor rows = layer.join(dgates_x);
    if (!w.W_ih.defined()) {
      dx.push_back(d == 0 ? rows : at::cat({dx[0], rows}, -1));
    } else {
      const Tensor dx_rows = rows.matmul(w.W_ih);
      dx.push_back(d == 0 ? dx_rows : dx[0] + dx_rows);
    }
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
