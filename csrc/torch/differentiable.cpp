// A layer and its backward in plain torch operations, from the same cell functions as the kernels.

#include <ATen/ATen.h>
#include <c10/util/irange.h>

#include "core/random.h"
#include "core/value_functions.h"
#include "cpu/cell_table.h"
#include "torch/layer.h"

namespace fastrnn::torch_ops {
namespace {

// A tensor as a value of the functions of cells.
class TensorNumbers final : public Numbers {
 public:
  explicit TensorNumbers(Tensor tensor) : tensor_(std::move(tensor)) {}

  const Tensor& tensor() const { return tensor_; }
  Value apply(Operation operation, std::initializer_list<Value> operands) const override;

 private:
  const Tensor tensor_;
};

Value value_of(const Tensor& tensor) {
  return tensor.defined() ? Value(std::make_shared<TensorNumbers>(tensor)) : Value();
}
std::vector<Value> values_of(at::TensorList tensors) {
  std::vector<Value> values;
  for (const Tensor& tensor : tensors) values.push_back(value_of(tensor));
  return values;
}
// A value that is one number, or has one for each unit, is repeated as `like`.
Tensor tensor_of(const Value& value, const Tensor& like) {
  if (value.numbers() == nullptr) return at::full_like(like, value.number());
  const Tensor& tensor = static_cast<const TensorNumbers*>(value.numbers())->tensor();
  return tensor.dim() < like.dim() ? tensor.expand_as(like) : tensor;
}
std::vector<Tensor> tensors_of(const std::vector<Value>& values, const Tensor& like) {
  std::vector<Tensor> tensors;
  for (const Value& value : values) tensors.push_back(tensor_of(value, like));
  return tensors;
}

Value TensorNumbers::apply(Operation operation, std::initializer_list<Value> operands) const {
  const Value &a = *operands.begin(), &b = *(operands.end() - 1);
  const bool of_number = operands.size() == 2 && a.numbers() == nullptr;
  const bool by_number = operands.size() == 2 && b.numbers() == nullptr;
  const auto at = [&](int i) { return tensor_of(operands.begin()[i], tensor_); };
  const auto compute = [&]() -> Tensor {
    switch (operation) {
      case Operation::add:
        return of_number ? tensor_ + a.number() : by_number ? tensor_ + b.number() : at(0) + at(1);
      case Operation::subtract:
        return of_number ? at::rsub(tensor_, a.number()) : by_number ? tensor_ - b.number() : at(0) - at(1);
      case Operation::multiply:
        return of_number ? tensor_ * a.number() : by_number ? tensor_ * b.number() : at(0) * at(1);
      case Operation::divide:
        return of_number   ? tensor_.reciprocal() * a.number()
               : by_number ? tensor_ / b.number()
                           : at(0) / at(1);
      case Operation::sigmoid:
        return at::sigmoid(tensor_);
      case Operation::tanh:
        return at::tanh(tensor_);
      case Operation::relu:
        return at::relu(tensor_);
      case Operation::exp:
        return at::exp(tensor_);
      case Operation::log_sigmoid:
        return at::log_sigmoid(tensor_);
      case Operation::if_positive:
        return at::where(at(0) <= 0, at(2), at(1));
      case Operation::zero_unless_positive:
        return at::threshold_backward(at(1), at(0), 0);
    }
    TORCH_INTERNAL_ASSERT(false);
  };
  return value_of(compute());
}

// A layer's tensors, and what they say of its form.
struct Layer {
  const LayerArgs& args;
  WeightLayout layout = args.layout();
  const CellInfo& cell = args.info();
  const ValueFunctions& functions = *cpu::row_of(args.cell).values;
  int G = cell.gates.size(), late = cell.late_gates, cell_states = cell.states.size() - 1;
  bool has_split_gate = cell.whole_gates < G;
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
using CellStates = std::vector<Tensor>;

// What the backward of a step needs of its forward, for n sequences.
struct Step {
  Tensor x, h_prev;
  std::vector<Tensor> s;
  Tensor h;              // [n, H]: as the cell computes it, before zoneout or a projection
  CellStates c_prev, c;  // c: before zoneout
  Tensor read, v;        // what W_hh multiplies, and its late gates' rows
  Normalised product, of_c;
  std::vector<Tensor> kept;  // zoneout's factors of the states before
  Tensor y;                  // [n, P]
};

// One direction: the weights, and its steps, by their time.
struct Direction {
  WeightsOf<Tensor> w;
  std::vector<Tensor> resets;  // of each step, or none
  Tensor mask;                 // [B, P] or undefined
  bool reverse;
  std::vector<Step> steps;
  Tensor h;      // final [B, P]
  CellStates c;  // [B, H] each

  int64_t time(int64_t i) const { return reverse ? static_cast<int64_t>(steps.size()) - 1 - i : i; }
};

// The sequences that a step of a packed batch does not have keep their state, or its gradient.
Tensor put(const Tensor& updated, const Tensor& state) {
  return updated.sym_size(0) == state.sym_size(0)
             ? updated
             : at::cat({updated, state.slice_symint(0, updated.sym_size(0))});
}

Tensor first(const Tensor& state, const Tensor& like) { return state.slice_symint(0, 0, like.sym_size(0)); }

CellStates first_of_each(const CellStates& states, const Tensor& like) {
  CellStates result;
  for (const Tensor& state : states) result.push_back(first(state, like));
  return result;
}
void put_each(const CellStates& updated, CellStates& states) {
  for (const auto k : c10::irange(states.size())) states[k] = put(updated[k], states[k]);
}

// States before step t, or their gradients, with zeros where a sequence begins anew there.
Tensor begin_anew(const Direction& direction, int64_t t, const Tensor& state) {
  const int64_t later = direction.reverse ? t + 1 : t;
  if (later >= static_cast<int64_t>(direction.resets.size())) return state;
  const Tensor& marks = direction.resets[later];
  return put(first(state, marks).masked_fill(marks.unsqueeze(-1), 0), state);
}

// Rows of a tensor with a gate's H in each: those of gates [begin, end).
Tensor rows_of_gates(const Layer& layer, const Tensor& rows, int begin, int end) {
  if (!rows.defined()) return {};
  const c10::SymInt H = rows.sym_size(0) / layer.G;
  return rows.slice_symint(0, begin * H, end * H);
}
Tensor times(const Tensor& x, const Tensor& factor) { return factor.defined() ? x * first(factor, x) : x; }
Tensor blend(const Tensor& kept, const Tensor& before, const Tensor& computed) {
  return kept.defined() ? kept * before + (1 - kept) * computed : computed;
}

// The gates' shares and the cell of one step.
void compute(const Layer& layer, const Direction& direction, Step& step, const Tensor& gx_rows) {
  const ValueFunctions& functions = layer.functions;
  const WeightsOf<Tensor>& w = direction.w;
  const int G = layer.G;
  const std::vector<Tensor> gx = gx_rows.chunk(G, -1);
  step.read = times(step.h_prev, direction.mask);
  std::vector<Value> s(layer.cell.saved + 1);
  const Value h_prev = value_of(step.h_prev);
  Value h;
  if (layer.late > 0) {
    const int E = G - layer.late;
    const auto shares = [&](const Tensor& read, int begin, int end) {
      const std::vector<Tensor> gh =
          at::linear(read, rows_of_gates(layer, w.W_hh, begin, end), rows_of_gates(layer, w.b_hh, begin, end))
              .chunk(end - begin, -1);
      std::vector<Value> a;
      for (const auto g : c10::irange(begin, end)) a.push_back(value_of(gx[g] + gh[g - begin]));
      return a;
    };
    Value v;
    functions.early_activate(shares(step.read, 0, E).data(), h_prev, s.data(), v);
    step.v = times(tensor_of(v, gx[0]), direction.mask);
    functions.late_output(shares(step.v, E, G).data(), h_prev, s.data(), h);
  } else {
    std::vector<Tensor> gh, products;
    if (layer.cell.normalised) {
      const Tensor product = at::linear(step.read, w.W_hh);
      step.product = Normalised(product);
      products = product.chunk(G, -1);
      gh = step.product.value.chunk(G, -1);
      for (const auto g : c10::irange(G)) gh[g] = gh[g] * w.unit[g];
    } else {
      gh = (w.W_hh.defined() ? at::linear(step.read, w.W_hh, w.b_hh) : step.read).chunk(G, -1);
    }
    const std::vector<Value> u = values_of(w.unit);
    std::vector<Value> c = values_of(step.c_prev);
    functions.activate(values_of(gx).data(), values_of(gh).data(), u.data(), s.data(), c.data());
    step.c = tensors_of(c, gx[0]);
    if (layer.cell.normalised && layer.cell_states > 0) {
      step.of_c = Normalised(step.c[0]);
      c[0] = value_of(step.of_c.value * w.unit[G] + w.unit[G + 1]);
    }
    functions.output(s.data(), u.data(), h_prev, c.data(), h);
    // Behind what Inner saves.
    for (const auto g : c10::irange(products.size())) s[layer.cell.saved - G + g] = value_of(products[g]);
  }
  step.h = tensor_of(h, gx[0]);
  s.pop_back();
  step.s = tensors_of(s, gx[0]);
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

Direction run(const Layer& layer, int64_t d) {
  const LayerArgs& args = layer.args;
  Direction result;
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
  CellStates c;
  for (const auto k : c10::irange(layer.cell_states)) c.push_back(state(1 + k, H));
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
    Step& step = result.steps[t];
    step.x = x[t];
    h = begin_anew(result, t, h);
    for (Tensor& state : c) state = begin_anew(result, t, state);
    step.h_prev = first(h, x[t]);
    step.c_prev = first_of_each(c, x[t]);
    compute(layer, result, step,
            w.W_ih.defined() ? at::linear(x[t], w.W_ih, w.b_ih) : x[t].chunk(layer.layout.D, -1)[d]);
    step.kept.resize(1 + layer.cell_states);
    step.y = layer.layout.projected ? at::linear(step.h, w.W_hr) : step.h;
    CellStates c_after = step.c;
    if (!args.noise.zoneout.empty()) {
      for (const auto k : c10::irange(1 + layer.cell_states)) {
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

variable_list forward(const Layer& layer, bool save) {
  std::vector<Direction> directions;
  for (const auto d : c10::irange(layer.layout.D)) directions.push_back(run(layer, d));
  // of(step) of every step and direction: side by side, or one direction after the other.
  const auto join = [&](bool side_by_side, const auto& of) {
    std::vector<std::vector<Tensor>> each(directions.size());
    for (const auto d : c10::irange(directions.size())) {
      for (const Step& step : directions[d].steps) each[d].push_back(of(step));
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
    for (const Direction& direction : directions) each.push_back(of(direction));
    return layer.join_states(each);
  };
  variable_list outputs{join(true, [](const auto& step) { return step.y; })};
  if (!layer.step) outputs.push_back(states([](const auto& direction) { return direction.h; }));
  for (const auto k : c10::irange(layer.cell_states)) {
    outputs.push_back(states([&](const auto& direction) { return direction.c[k]; }));
  }
  if (!save) return outputs;
  const auto real = layer.args.x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  if (layer.cell.saved > 0) {
    outputs.push_back(join(false, [](const auto& step) { return at::cat(step.s, -1); }).to(real));
  }
  const bool zoned = !layer.args.noise.zoneout.empty();
  if (layer.cell_states > 0) {
    outputs.push_back(join(false, [](const auto& step) {
                        CellStates c = step.c;
                        for (const auto k : c10::irange(c.size())) {
                          c[k] = blend(step.kept[1 + k], step.c_prev[k], c[k]);
                        }
                        return at::cat(c, -1);
                      }).to(real));
  }
  if (zoned && (layer.cell.saved == 0 || layer.cell_states > 0)) {
    outputs.push_back(join(false, [&](const auto& step) {
                        std::vector<Tensor> computed(step.c.begin(), step.c.end());
                        if (layer.cell.saved == 0) computed.insert(computed.begin(), step.h);
                        return at::cat(computed, -1);
                      }).to(real));
  }
  // As the kernels do: y again where the backward needs it, unless it is a step's own result.
  if (!layer.step && (layer.cell.saved == 0 || layer.args.packed() || directions[0].steps.size() > 1))
    outputs.push_back(outputs[0].clone());
  return outputs;
}

// The gradients that the cell of a step passes on.
struct StepGradients {
  Tensor dgx, dgh;  // [n, GH]
  std::vector<Tensor> du;
  Tensor dh_prev;
};

// dh, dc: of the step's states; turns dc into the gradients of those before.
StepGradients differentiate(const Layer& layer, const Direction& direction, const Step& step,
                            const Tensor& dh_step, CellStates& dc_step) {
  const ValueFunctions& functions = layer.functions;
  const WeightsOf<Tensor>& w = direction.w;
  const int G = layer.G;
  std::vector<Value> s = values_of(step.s), u = values_of(w.unit), dc = values_of(dc_step);
  std::vector<Value> dgx(G), dgh(G), du(layer.cell.unit_vectors() + 1);
  s.emplace_back();
  const Value h_prev = value_of(w.W_hh.defined() ? step.h_prev : step.read), dh = value_of(dh_step);
  Value dh_prev;
  const auto rows_of = [&](const std::vector<Value>& gates, int begin = 0) {
    const std::vector<Tensor> tensors = tensors_of(gates, dh_step);
    return at::cat(at::TensorList(tensors).slice(begin), -1);
  };
  StepGradients result;
  if (layer.late > 0) {
    const int E = G - layer.late;
    functions.late_backward(s.data(), h_prev, dh, dgx.data(), dh_prev);
    const Tensor dv = rows_of(dgx, E).matmul(rows_of_gates(layer, w.W_hh, E, G));
    Value v;
    functions.early_backward(s.data(), h_prev, value_of(times(dv, direction.mask)), dgx.data(), dh_prev, v);
  } else if (layer.cell.normalised && layer.cell_states > 0) {
    Value dc_of_h;
    functions.backward_output(s.data(), value_of(step.of_c.value * w.unit[G] + w.unit[G + 1]), dh, dgx.data(),
                              dc_of_h);
    const Tensor d = tensor_of(dc_of_h, dh_step);
    du[G] = value_of(d * step.of_c.value);
    du[G + 1] = dc_of_h;
    dc[0] = dc[0] + value_of(step.of_c.backward(d * w.unit[G]));
    functions.backward_gates(s.data(), value_of(step.c_prev[0]), dc[0], dgx.data());
  } else {
    functions.backward(s.data(), u.data(), h_prev, value_of(step.h), values_of(step.c_prev).data(),
                       values_of(step.c).data(), dh, dc.data(), dgx.data(), dgh.data(), du.data(), dh_prev);
  }
  du.pop_back();
  result.dgx = rows_of(dgx);
  result.dgh = layer.has_split_gate ? rows_of(dgh) : result.dgx;
  if (layer.cell.reads_h) result.dh_prev = tensor_of(dh_prev, dh_step);
  result.du = tensors_of(du, dh_step);
  if (layer.cell.normalised) {
    const std::vector<Tensor> product = step.product.value.chunk(G, -1), of_gate = result.dgh.chunk(G, -1);
    std::vector<Tensor> d(G);
    for (const auto g : c10::irange(G)) {
      result.du[g] = of_gate[g] * product[g];
      d[g] = of_gate[g] * w.unit[g];
    }
    result.dgh = step.product.backward(at::cat(d, -1));
  }
  dc_step = tensors_of(dc, dh_step);
  return result;
}

// Gradients of x, hx and weights, in this order. grads: one for each result, undefined for none.
variable_list backward(const Layer& layer, const std::vector<Tensor>& grads) {
  const LayerArgs& args = layer.args;
  const WeightLayout& layout = layer.layout;
  const int E = layer.G - layer.late;
  std::vector<Tensor> dx, dweights;
  std::vector<std::vector<Tensor>> dhx(args.info().states.size());  // of each state: of each direction
  for (const auto d : c10::irange(layout.D)) {
    const Direction direction = run(layer, d);
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
    CellStates dc;
    for (const auto k : c10::irange(layer.cell_states)) {
      dc.push_back(of_state(grads.size() - layer.cell_states + k, direction.c[k]));
    }

    std::vector<Tensor> x, read, v, h, dgates_x(T), dgates_h(T), dy_total(T), dunit[kMostUnitVectors];
    for (int64_t i = T; i-- > 0;) {
      const int64_t t = direction.time(i);
      const Step& step = direction.steps[t];
      dy_total[t] = first(dh, step.x);
      if (dy[t].defined()) dy_total[t] = dy_total[t] + dy[t];
      CellStates dc_t = first_of_each(dc, step.x);
      const CellStates dc_after = dc_t;
      const auto to_cell = [&](int k, const Tensor& d) {
        return step.kept[k].defined() ? (1 - step.kept[k]) * d : d;
      };
      const auto to_before = [&](int k, const Tensor& d, const Tensor& of_cell) {
        return step.kept[k].defined() ? of_cell + step.kept[k] * d : of_cell;
      };
      for (const auto k : c10::irange<int>(dc_t.size())) dc_t[k] = to_cell(1 + k, dc_t[k]);
      const StepGradients found =
          differentiate(layer, direction, step,
                        to_cell(0, layout.projected ? dy_total[t].matmul(w.W_hr) : dy_total[t]), dc_t);
      for (const auto k : c10::irange<int>(dc_t.size())) dc_t[k] = to_before(1 + k, dc_after[k], dc_t[k]);
      dgates_x[t] = found.dgx;
      dgates_h[t] = found.dgh;
      for (const auto k : c10::irange(layer.cell.unit_vectors())) dunit[k].push_back(found.du[k]);
      Tensor dh_t = found.dgh;
      if (w.W_hh.defined()) {
        dh_t = dh_t.narrow_symint(-1, 0, dh_t.sym_size(-1) / layer.G * E)
                   .matmul(rows_of_gates(layer, w.W_hh, 0, E));
      }
      dh_t = times(dh_t, direction.mask);
      if (layer.cell.reads_h && found.dh_prev.defined()) dh_t = dh_t + found.dh_prev;
      dh = begin_anew(direction, t, put(to_before(0, dy_total[t], dh_t), dh));
      put_each(dc_t, dc);
      for (Tensor& gradient : dc) gradient = begin_anew(direction, t, gradient);
    }
    for (const Step& step : direction.steps) {
      x.push_back(step.x);
      read.push_back(step.read);
      if (layer.late > 0) v.push_back(step.v);
      h.push_back(step.h);
    }
    const Tensor all_x = at::cat(dgates_x), all_h = at::cat(dgates_h);
    layout.for_each([&](const cells::Parameter& parameter, int, int k) {
      switch (parameter.kind) {
        case cells::ParameterKind::input_matrix:
          return dweights.push_back(all_x.t().matmul(at::cat(x)));
        case cells::ParameterKind::state_matrix: {
          if (layer.late == 0) return dweights.push_back(all_h.t().matmul(at::cat(read)));
          const Tensor rows = all_h.t();
          return dweights.push_back(at::cat({rows_of_gates(layer, rows, 0, E).matmul(at::cat(read)),
                                             rows_of_gates(layer, rows, E, layer.G).matmul(at::cat(v))}));
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

}  // namespace

variable_list differentiable_forward(const LayerArgs& args, bool save) { return forward(Layer{args}, save); }

variable_list differentiable_backward(const LayerArgs& args, const BackwardArgs& given) {
  variable_list grads;
  for (const optional<Tensor> grad : given.grads) grads.push_back(grad.value_or(Tensor()));
  const variable_list all = backward(Layer{args}, grads);
  variable_list result;
  for (const auto i : c10::irange(all.size())) {
    if (given.wanted[i]) result.push_back(all[i]);
  }
  return result;
}

}  // namespace fastrnn::torch_ops
