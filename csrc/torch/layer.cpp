#include "torch/layer.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/irange.h>
#include <torch/library.h>

#include <cstring>

#include "cpu/dispatch.h"
#include "torch/arguments.h"
#ifdef FASTRNN_CUDA
#include "torch/cuda.h"
#endif

namespace fastrnn::torch_ops {

namespace {

using c10::SymInt;

void check_tensor(const Tensor& tensor, const std::string& name, at::SymIntArrayRef size,
                  at::ScalarType dtype, const Tensor& x) {
  TORCH_CHECK(tensor.sym_sizes() == size, name, ": expected size ", size, ", got ", tensor.sym_sizes());
  TORCH_CHECK(tensor.scalar_type() == dtype, name, ": expected dtype ", dtype, " for an input of ",
              x.scalar_type(), ", got ", tensor.scalar_type());
  TORCH_CHECK(tensor.device() == x.device(), name, ": expected device ", x.device(), " as the input's, got ",
              tensor.device());
}

// The sizes of a layer, once all tensors are known to agree with them.
struct Shape {
  const WeightLayout layout;
  SymInt T, B, R, I, H, P;
  int64_t D, S, C, N = 0;  // C: states beside h; N: states that are saved as they were before zoneout
  bool step = false;
  // In the backward: for the states before each step, or as the result of a cell that saves nothing.
  bool needs_y = false;

  explicit Shape(const WeightLayout& layout)
      : layout(layout), D(layout.D), S(cell().saved), C(cell().states.size() - 1) {}

  // The kernels divide by these sizes. A layer with none of one is a matter of torch's operations.
  bool has_empty_weights() const { return I == 0 || H == 0 || P == 0; }
  const CellInfo& cell() const { return layout.cell; }
};

c10::SymDimVector size_of(const cells::Parameter& parameter, const Shape& s) {
  const SymInt GH = s.cell().gates.size() * s.H;
  switch (parameter.kind) {
    case cells::ParameterKind::input_matrix:
      return {GH, s.I};
    case cells::ParameterKind::state_matrix:
      return {GH, s.P};
    case cells::ParameterKind::unit_vectors:
      if (parameter.rows > 0) return {parameter.rows, s.H};
      return {s.H};
    case cells::ParameterKind::projection:
      return {s.P, s.H};
    default:
      return {GH};
  }
}

Shape check_shape(const LayerArgs& args) {
  const auto& [x, batch_sizes, hx, weights, cell_index, bidirectional, batch_first, noise, resets] = args;
  const CellInfo& cell = args.info();
  const auto dtype = x.scalar_type();
  const bool half = !x.is_cpu();  // only the CUDA kernels have it
  TORCH_CHECK_NOT_IMPLEMENTED(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || (half && dtype == at::kHalf),
      "input: expected dtype Float, Double", half ? ", BFloat16 or Half" : " or BFloat16 on the CPU",
      ", got ", dtype);
  TORCH_CHECK(x.dim() == (batch_sizes || !bidirectional ? 2 : 3) || (x.dim() == 3 && !batch_sizes),
              "input: expected [T, B, I], packed [R, I] or a single step [B, I], got ", x.dim(),
              " dimensions");
  Shape s(args.layout());
  s.layout.check_matrices(weights);
  s.step = args.is_step();
  s.I = x.sym_size(-1);
  s.P = s.layout.P(weights);
  s.H = s.layout.H(weights);
  if (!cell.has(cells::ParameterKind::input_matrix)) {
    TORCH_CHECK(s.I == s.layout.I(weights), "input: expected the gates' shares, ", s.layout.I(weights),
                " numbers a row, got ", s.I);
  }
  const size_t states = cell.states.size();
  TORCH_CHECK(hx.empty() || hx.size() == states, "hx: expected ", states, " state(s), got ", hx.size());
  if (batch_sizes) {
    TORCH_CHECK(batch_sizes->dim() == 1 && batch_sizes->scalar_type() == at::kLong,
                "batch_sizes: expected a vector of int64");
    TORCH_CHECK(!hx.empty() && hx[0].dim() == 3, "hx: expected [D, B, H] with a packed input");
    s.T = batch_sizes->sym_size(0);
    s.R = x.sym_size(0);
    s.B = hx[0].sym_size(1);
  } else {
    s.T = s.step ? SymInt(1) : x.sym_size(batch_first ? 1 : 0);
    s.B = x.sym_size(s.step || batch_first ? 0 : 1);
    s.R = s.T * s.B;
  }
  s.needs_y = s.S == 0 || batch_sizes || s.T > 1;  // a compiled graph need not know T of packed rows
  for (const auto i : c10::irange(hx.size())) {
    const SymInt width = i == 0 ? s.P : s.H;
    const SymInt layered[] = {s.D, s.B, width}, single[] = {s.B, width};
    check_tensor(hx[i], cell.states[i] + std::string("_0"),
                 s.step ? at::SymIntArrayRef(single) : at::SymIntArrayRef(layered), dtype, x);
  }
  if (noise.mask) {
    const SymInt size[] = {s.D, s.B, s.P};
    check_tensor(*noise.mask, "mask", size, dtype, x);
  }
  if (noise.seed) {
    const SymInt size[] = {1};
    check_tensor(*noise.seed, "seed", size, at::kLong, x);
  }
  if (resets) {
    TORCH_CHECK(resets->scalar_type() == at::kBool, "resets: expected dtype Bool, got ",
                resets->scalar_type());
    check_tensor(*resets, "resets", x.sym_sizes().slice(0, x.dim() - 1), at::kBool, x);
  }
  TORCH_CHECK(noise.zoneout.empty() || (noise.zoneout.size() == states && !s.layout.projected),
              "zoneout: expected none, or one for each of ", states, " states and no projection");
  if (!noise.zoneout.empty()) s.N = (s.S == 0) + s.C;
  for (const auto d : c10::irange(s.D)) {
    s.layout.for_each([&](const cells::Parameter& parameter, int place, int) {
      check_tensor(weights[d * s.layout.each + place], parameter.symbol, size_of(parameter, s), dtype, x);
    });
  }
  return s;
}

c10::SymDimVector y_size(const Tensor& x, const Shape& s) {
  c10::SymDimVector size(x.sym_sizes());
  size.back() = s.D * s.P;
  return size;
}

// Calls f(name, size, dtype) for each result of a forward.
template <class F>
void for_each_result(const Tensor& x, const Shape& s, const F& f) {
  const SymInt h_n[] = {s.D, s.B, s.P}, c_n[] = {s.D, s.B, s.H};
  f("y", y_size(x, s), x.scalar_type());
  if (!s.step) f("h_n", h_n, x.scalar_type());
  for (const auto k : c10::irange(s.C)) {
    f(s.cell().states[1 + k] + std::string("_n"), at::SymIntArrayRef(c_n).slice(s.step ? 1 : 0),
      x.scalar_type());
  }
}

// The same for what a backward needs of a forward beside y.
template <class F>
void for_each_activation(const Tensor& x, const Shape& s, const F& f) {
  const auto real = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const SymInt activations[] = {s.D, s.R, s.S * s.H}, c[] = {s.D, s.R, s.C * s.H},
               computed[] = {s.D, s.R, s.N * s.H};
  if (s.S > 0) f("s", activations, real);
  if (s.C > 0) f("c", c, real);
  if (s.N > 0) f("computed", computed, real);
}

}  // namespace

void check_storage(const Tensor& tensor, const char* name, const char* suffix) {
  if (!is_plain(tensor) || tensor.layout() != at::kStrided || tensor._is_zerotensor()) return;
  const size_t bytes = at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.itemsize());
  check_span(tensor, bytes / tensor.itemsize(), name, suffix);
}

namespace {

// What both passes are given but for the weights: pointers to what is not read stay null.
template <class T>
void fill_sizes(LayerParams<T>& p, const Arguments& arguments, const Shape& s) {
  p.rows = arguments.rows;
  p.I = s.I.expect_int();
  p.H = s.H.expect_int();
  p.P = s.P.expect_int();
  p.D = static_cast<int>(s.D);
}

template <class T>
void read_states(LayerParams<T>& p, Arguments& arguments, const LayerArgs& args, bool reads_h_0) {
  for (const auto i : c10::irange(args.hx.size())) {
    if (i == 0 && !reads_h_0) continue;
    (i == 0 ? p.h0 : p.c0[i - 1]) = arguments.read<T>(args.hx[i], args.info().states[i], "_0");
  }
}

template <class T>
void read_options(LayerParams<T>& p, Arguments& arguments, const LayerArgs& args) {
  const LayerNoise& noise = args.noise;
  if (args.resets) p.resets = arguments.read<bool>(*args.resets, "resets");
  if (noise.mask) p.noise.mask = arguments.read<T>(*noise.mask, "mask");
  if (noise.seed) p.noise.seed = arguments.read<int64_t>(*noise.seed, "seed");
  std::copy(noise.zoneout.begin(), noise.zoneout.end(), p.noise.zoneout);
}

// Where a layer is computed; for CUDA see torch/cuda.h. An object of it lives while a layer is.
struct Cpu {
  static constexpr bool computes = true, has_half = false;
  static bool has_kernels(const LayerArgs&) { return true; }
  explicit Cpu(const Tensor&) {}

  template <class T>
  void forward(int cell, const ForwardParams<T>& p) const {
    cpu::kernels_of<T>(cell).forward(p, cpu_resources());
  }
  template <class T>
  void backward(int cell, const BackwardParams<T>& p) const {
    cpu::kernels_of<T>(cell).backward(p, cpu_resources());
  }
};

// Checks, and results of the right form.
struct Meta {
  static constexpr bool computes = false;
};

// Calls f with a zero of the tensor's type, which check_shape has let pass.
template <class Backend, class F>
void with_dtype(const Tensor& x, const F& f) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return f(float{});
    case at::kDouble:
      return f(double{});
    case at::kBFloat16:
      return f(bf16{});
    default:
      if constexpr (Backend::has_half) return f(fp16{});
  }
}

template <class Backend>
variable_list layer_forward(const LayerArgs& args, bool save) {
  const Tensor& x = args.x;
  const at::TensorList hx = args.hx, weights = args.weights;
  const Shape s = check_shape(args);
  if constexpr (Backend::computes) {
    if (s.R != 0 && (s.has_empty_weights() || !Backend::has_kernels(args)))
      return differentiable_forward(args, save);
  }
  variable_list outputs;
  outputs.reserve(6);
  const auto allocate = [&](const auto&, at::SymIntArrayRef size, at::ScalarType dtype) {
    outputs.push_back(at::empty_symint(size, x.options().dtype(dtype)));
  };
  for_each_result(x, s, allocate);
  if (save) for_each_activation(x, s, allocate);
  // A layer saves a copy of y, so that its result may be written to (`y += x`), as torch.nn's may. A step
  // saves its result itself.
  const bool copies_y = save && s.needs_y && !s.step;
  if (copies_y) allocate("y", y_size(x, s), x.scalar_type());
  if constexpr (Backend::computes) {
    if (s.R == 0) {  // the states stay as they are
      for (const auto i : c10::irange(hx.size())) outputs[s.step ? i : i + 1].copy_(hx[i]);
      for (const auto i : c10::irange<size_t>(1, hx.empty() ? outputs.size() : 1)) outputs[i].zero_();
      return outputs;
    }
    const Backend backend(x);
    with_dtype<Backend>(x, [&](auto zero) {
      using T = decltype(zero);
      Arguments arguments(x, args.batch_sizes, s.T.expect_int(), s.B.expect_int(),
                          args.batch_first && !s.step);
      ForwardParams<T> p{};
      fill_sizes(p, arguments, s);
      for (const auto d : c10::irange(s.D)) {
        s.layout.for_each([&](const cells::Parameter& parameter, int place, int i) {
          p.weights[d].set(parameter.kind,
                           arguments.read<T>(weights[d * s.layout.each + place], parameter.symbol), i,
                           s.cell().vectors_of(parameter), p.H);
        });
      }
      p.x = arguments.read<T>(x, "input");
      read_states(p, arguments, args, true);
      read_options(p, arguments, args);
      size_t i = 0;
      p.y = data<T>(outputs[i++]);
      if (!s.step) p.hn = data<T>(outputs[i++]);
      for (const auto k : c10::irange(s.C)) p.cn[k] = data<T>(outputs[i++]);
      if (save && s.S > 0) p.s = data<Real<T>>(outputs[i++]);
      if (save && s.C > 0) p.c = data<Real<T>>(outputs[i++]);
      if (save && s.N > 0) p.computed = data<Real<T>>(outputs[i++]);
      if (copies_y) p.y_copy = data<T>(outputs[i++]);
      backend.forward(args.cell, p);
    });
  }
  return outputs;
}

template <class Backend>
variable_list layer(const LayerArgs& args, bool /*checkpoint_gates*/) {
  return layer_forward<Backend>(args, false);
}

// Whether the backward reads a parameter.
bool is_read(cells::ParameterKind kind, bool wants_dx) {
  switch (kind) {
    case cells::ParameterKind::input_matrix:
      return wants_dx;
    case cells::ParameterKind::input_bias:
    case cells::ParameterKind::state_bias:
      return false;
    default:
      return true;
  }
}

void check_gradients(const c10::List<optional<Tensor>>& grads, const Tensor& x, const Shape& s) {
  const size_t expected = 1 + !s.step + s.C;
  TORCH_CHECK(grads.size() == expected, "grads: expected one or None for each of ", expected,
              " result(s), got ", grads.size());
  size_t i = 0;
  for_each_result(x, s, [&](const std::string& name, at::SymIntArrayRef size, at::ScalarType dtype) {
    const optional<Tensor> grad = grads.get(i++);
    if (grad) check_tensor(*grad, "d" + name, size, dtype, x);
  });
}

void check_saved(at::TensorList saved, const Tensor& x, const Shape& s) {
  const size_t expected = (s.S > 0) + (s.C > 0) + (s.N > 0) + s.needs_y;
  TORCH_CHECK(saved.size() == expected, "saved: expected ", expected, " tensor(s), got ", saved.size());
  size_t i = 0;
  const auto check = [&](const char* name, at::SymIntArrayRef size, at::ScalarType dtype) {
    check_tensor(saved[i++], std::string("saved ") + name, size, dtype, x);
  };
  for_each_activation(x, s, check);
  if (s.needs_y) check("y", y_size(x, s), x.scalar_type());
}

// Gradients of those of x, hx and weights, in this order, that `wanted` marks. saved: what layer_forward
// returned after the results; for a step of a cell that saves nothing else, y.
template <class Backend>
variable_list layer_backward(const LayerArgs& args, const BackwardArgs& given) {
  const Tensor& x = args.x;
  const at::TensorList hx = args.hx, weights = args.weights;
  const Shape s = check_shape(args);
  if constexpr (Backend::
                    computes) {  // compiled autograd traces with stand-ins for the gradients, of any size
    check_gradients(given.grads, x, s);
    check_saved(given.saved, x, s);
  }
  std::vector<Tensor> inputs{x};
  inputs.insert(inputs.end(), hx.begin(), hx.end());
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  TORCH_CHECK(given.wanted.size() == inputs.size(), "wanted: expected ", inputs.size(), " flags, got ",
              given.wanted.size());
  if constexpr (Backend::computes) {
    if (s.R != 0 && (s.has_empty_weights() || !Backend::has_kernels(args)))
      return differentiable_backward(args, given);
  }
  std::vector<Tensor> all(inputs.size());
  variable_list result;
  for (const auto i : c10::irange(inputs.size())) {
    if (!given.wanted[i]) continue;
    all[i] = at::empty_like(inputs[i], inputs[i].options(), at::MemoryFormat::Contiguous);
    result.push_back(all[i]);
  }
  if constexpr (Backend::computes) {
    const auto grad = [&](size_t i) { return given.grads.get(i).value_or(Tensor()); };
    const size_t h_grad = s.step ? 0 : 1;  // where h_n's would be; for a step the next state follows y
    if (s.R == 0) {
      for (const auto i : c10::irange(all.size())) {
        if (all[i].defined()) all[i].zero_();
      }
      for (const auto i : c10::irange(hx.size())) {
        if (all[1 + i].defined() && !(s.step && i == 0) && grad(h_grad + i).defined())
          all[1 + i].copy_(grad(h_grad + i));
      }
      return result;
    }
    const Backend backend(x);
    with_dtype<Backend>(x, [&](auto zero) {
      using T = decltype(zero);
      Arguments arguments(x, args.batch_sizes, s.T.expect_int(), s.B.expect_int(),
                          args.batch_first && !s.step);
      BackwardParams<T> p{};
      fill_sizes(p, arguments, s);
      size_t i = 0;
      if (s.S > 0) p.s = arguments.read<Real<T>>(given.saved[i++], "saved s");
      if (s.C > 0) p.c = arguments.read<Real<T>>(given.saved[i++], "saved c");
      if (s.N > 0) p.computed = arguments.read<Real<T>>(given.saved[i++], "saved states");
      if (s.needs_y) p.y = arguments.read<T>(given.saved[i++], "saved y");
      p.dy = arguments.read<T>(grad(0), "dy");
      if (!s.step) p.dhn = arguments.read<T>(grad(1), "dh_n");
      for (const auto k : c10::irange(s.C)) p.dcn[k] = arguments.read<T>(grad(h_grad + 1 + k), "dc_n");
      p.dx = data<T>(all[0]);
      for (const auto k : c10::irange(hx.size())) (k == 0 ? p.dh0 : p.dc0[k - 1]) = data<T>(all[1 + k]);
      // What is not read may have no memory any more; see kept_for_backward.
      bool wants_W_ih = false, wants_W_hh = false;
      for (const auto d : c10::irange(s.D)) {
        s.layout.for_each([&](const cells::Parameter& parameter, int place, int k) {
          const size_t at = d * s.layout.each + place;
          const Tensor& dw = all[1 + hx.size() + at];
          const int n = s.cell().vectors_of(parameter);
          p.dweights[d].set(parameter.kind, data<T>(dw), k, n, p.H);
          wants_W_ih |= parameter.kind == cells::ParameterKind::input_matrix && dw.defined();
          wants_W_hh |= parameter.kind == cells::ParameterKind::state_matrix && dw.defined();
          if (is_read(parameter.kind, p.dx != nullptr))
            p.weights[d].set(parameter.kind, arguments.read<T>(weights[at], parameter.symbol), k, n, p.H);
        });
      }
      if (wants_W_ih) p.x = arguments.read<T>(x, "input");
      read_states(p, arguments, args, wants_W_hh || args.info().reads_h);
      read_options(p, arguments, args);
      backend.backward(args.cell, p);
    });
  }
  return result;
}

}  // namespace

void check_layer(const LayerArgs& args) { check_shape(args); }

Which kept_for_backward(const LayerArgs& args, Which wanted) {
  const WeightLayout layout = args.layout();
  const bool several_steps =
      args.packed() ? args.batch_sizes->size(0) > 1 : !args.is_step() && args.x.size(args.batch_first) > 1;
  const size_t states = args.hx.size();
  const Which x_bit = 1, h_0_bit = states > 0 ? 2 : 0;
  Which kept = 0;
  for (const auto i : c10::irange<size_t>(1, states)) kept |= Which{2} << i;  // states beside h
  for (const auto d : c10::irange(layout.D)) {
    layout.for_each([&](const cells::Parameter& parameter, int place, int) {
      const Which bit = Which{1} << (1 + states + d * layout.each + place);
      switch (parameter.kind) {
        case cells::ParameterKind::input_matrix:
          if (wanted & bit) kept |= x_bit;  // dW_ih = dgates^T x
          if (wanted & x_bit) kept |= bit;  // dx = dgates W_ih
          break;
        case cells::ParameterKind::state_matrix:
          if (wanted & bit) kept |= h_0_bit;  // dW_hh = dgates^T h
          if (several_steps || (wanted & h_0_bit) || layout.cell.late_gates > 0) {
            kept |= bit;  // dh = dgates W_hh, and so the gradient of what late gates multiply
          }
          break;
        case cells::ParameterKind::unit_vectors:
        case cells::ParameterKind::gate_vector:
        case cells::ParameterKind::projection:
          kept |= bit;
          break;
        default:
          break;
      }
    });
  }
  return kept;
}

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("layer", as_layer<layer<Cpu>>);
  m.impl("layer_forward", as_layer<layer_forward<Cpu>>);
  m.impl("layer_backward", as_layer_backward<layer_backward<Cpu>>);
}
#ifdef FASTRNN_CUDA
TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) {
  m.impl("layer", as_layer<layer<Cuda>>);
  m.impl("layer_forward", as_layer<layer_forward<Cuda>>);
  m.impl("layer_backward", as_layer_backward<layer_backward<Cuda>>);
}
#else
void refuse_cuda(const c10::OperatorHandle&, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(false,
                              "input: expected a tensor on the CPU, got one on a CUDA device, and this "
                              "fastrnn is built without CUDA: "
                              "build it again with FASTRNN_CUDA=1");
}
TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) {
  for (const char* name : {"layer", "layer_forward", "layer_backward"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse_cuda>());
  }
}
#endif
TORCH_LIBRARY_IMPL(fastrnn, Meta, m) {
  m.impl("layer", as_layer<layer<Meta>>);
  m.impl("layer_forward", as_layer<layer_forward<Meta>>);
  m.impl("layer_backward", as_layer_backward<layer_backward<Meta>>);
}

}  // namespace fastrnn::torch_ops
