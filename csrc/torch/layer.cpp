#include "torch/layer.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/irange.h>
#include <torch/library.h>

#include <cstring>

#include "cpu/dispatch.h"
#ifdef FASTRNN_CUDA
#include "torch/cuda.h"
#endif

namespace fastrnn::torch_ops {

WeightLayout weight_layout(at::TensorList weights, bool bidirectional) {
  const int64_t D = bidirectional ? 2 : 1, count = static_cast<int64_t>(weights.size());
  TORCH_CHECK(count % D == 0 && count / D >= 2 && count / D <= 5,
              "weights: expected W_ih, W_hh[, b_ih, b_hh][, W_hr] for each of ", D, " direction(s), got ",
              count, " tensors");
  return {D, count / D};
}

const cpu::CellKernels& find_cell(const std::string& name) {
  try {
    return cpu::find_cell(name);
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

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
  SymInt T, B, R, I, H, P;
  int64_t D, S;
  bool step, has_c, projected;
  bool needs_y;  // in the backward: the states before each step, or the result of a cell that saves nothing

  // The kernels divide by these sizes. A layer with none of one is a matter of torch's operations.
  bool has_empty_weights() const { return I == 0 || H == 0 || P == 0; }
};

Shape check_shape(const Tensor& x, const optional<Tensor>& batch_sizes, at::TensorList hx,
                  at::TensorList weights, const cpu::CellKernels& cell, bool bidirectional,
                  bool batch_first) {
  const WeightLayout layout = weight_layout(weights, bidirectional);
  const auto dtype = x.scalar_type();
  const bool half = !x.is_cpu();  // only the CUDA kernels have it
  TORCH_CHECK_NOT_IMPLEMENTED(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || (half && dtype == at::kHalf),
      "input: expected dtype Float, Double", half ? ", BFloat16 or Half" : " or BFloat16 on the CPU",
      ", got ", dtype);
  TORCH_CHECK(x.dim() == (batch_sizes || !bidirectional ? 2 : 3) || (x.dim() == 3 && !batch_sizes),
              "input: expected [T, B, I], packed [R, I] or a single step [B, I], got ", x.dim(),
              " dimensions");
  TORCH_CHECK(weights[0].dim() == 2 && weights[1].dim() == 2,
              "weights: expected W_ih and W_hh to be matrices");
  TORCH_CHECK(cell.has_c || !layout.projected(), "W_hr: only an LSTM has a projection");
  Shape s;
  s.D = layout.D;
  s.S = cell.saved;
  s.has_c = cell.has_c;
  s.projected = layout.projected();
  s.step = x.dim() == 2 && !batch_sizes;
  s.I = x.sym_size(-1);
  s.P = weights[1].sym_size(1);
  s.H = s.projected ? weights[layout.each - 1].sym_size(-1) : s.P;
  const size_t states = cell.has_c ? 2 : 1;
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
  const auto check = [&](const Tensor& tensor, const char* name, at::SymIntArrayRef size) {
    check_tensor(tensor, name, size, x.scalar_type(), x);
  };
  const SymInt GH = cell.gates * s.H, D = s.D;
  for (const auto i : c10::irange(hx.size())) {
    const SymInt width = i == 0 ? s.P : s.H;
    const SymInt layered[] = {D, s.B, width}, single[] = {s.B, width};
    check(hx[i], i == 0 ? "h_0" : "c_0", s.step ? at::SymIntArrayRef(single) : at::SymIntArrayRef(layered));
  }
  for (const auto d : c10::irange(layout.D)) {
    const at::TensorList w = weights.slice(d * layout.each, layout.each);
    check(w[0], "W_ih", {GH, s.I});
    check(w[1], "W_hh", {GH, s.P});
    if (layout.bias()) {
      check(w[2], "b_ih", {GH});
      check(w[3], "b_hh", {GH});
    }
    if (layout.projected()) check(w[layout.each - 1], "W_hr", {s.P, s.H});
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
  if (s.has_c) f("c_n", at::SymIntArrayRef(c_n).slice(s.step ? 1 : 0), x.scalar_type());
}

// The same for what a backward needs of a forward beside y.
template <class F>
void for_each_activation(const Tensor& x, const Shape& s, const F& f) {
  const auto real = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const SymInt activations[] = {s.D, s.R, s.S * s.H}, c[] = {s.D, s.R, s.H};
  if (s.S > 0) f("s", activations, real);
  if (s.has_c) f("c", c, real);
}

// span: from the tensor's first number to its last.
void check_span(const Tensor& tensor, size_t span, const char* name) {
  const size_t needed = span == 0 ? 0 : (tensor.storage_offset() + span) * tensor.itemsize();
  const size_t there = tensor.storage().nbytes();
  TORCH_CHECK(needed <= there, name, ": expected a storage of at least ", needed, " bytes for its size ",
              tensor.sizes(), ", got one of ", there, ": it was resized");
}

}  // namespace

void check_storage(const Tensor& tensor, const char* name) {
  if (!is_plain(tensor) || tensor.layout() != at::kStrided || tensor._is_zerotensor()) return;
  const size_t bytes = at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.itemsize());
  check_span(tensor, bytes / tensor.itemsize(), name);
}

namespace {

// Holds what the pointers in a parameter struct point to.
class Arguments {
 public:
  Arguments(const Tensor& x, const optional<Tensor>& batch_sizes, const Shape& s, bool batch_first)
      : rows{s.T.expect_int(), s.B.expect_int(), 0, 1, nullptr, nullptr} {
    if (batch_sizes) {
      TORCH_CHECK(batch_sizes->is_cpu(), "batch_sizes: expected a tensor on the CPU, got one on ",
                  batch_sizes->device());
      rows.batch_sizes = read<int64_t>(*batch_sizes, "batch_sizes");
      while (rows.T > 0 && rows.batch_sizes[rows.T - 1] == 0) --rows.T;  // steps that no sequence has
      offsets_.resize(rows.T + 1, 0);
      for (const auto t : c10::irange(rows.T)) {
        const int64_t n = rows.batch_sizes[t], most = t == 0 ? rows.B : rows.batch_sizes[t - 1];
        TORCH_CHECK(n > 0 && n <= most && (t > 0 || n == rows.B),
                    "batch_sizes: expected to begin with the batch size ", rows.B,
                    " of hx and never to grow, got ", n, " at step ", t);
        offsets_[t + 1] = offsets_[t] + n;
      }
      TORCH_CHECK(offsets_[rows.T] == x.size(0), "batch_sizes: expected to add up to the ", x.size(0),
                  " rows of the input, got ", offsets_[rows.T]);
      rows.offsets = offsets_.data();
    } else if (batch_first && !s.step && rows.B > 1) {
      rows.stride_t = 1;
      rows.stride_b = rows.T;
    } else {
      rows.stride_t = rows.B;
    }
  }

  // Null for an undefined tensor.
  template <class T>
  const T* read(const Tensor& tensor, const char* name) {
    if (!tensor.defined()) return nullptr;
    if (tensor.is_contiguous() && !tensor.is_neg() && !tensor._is_zerotensor()) {
      check_span(tensor, tensor.numel(), name);
      return static_cast<const T*>(tensor.const_data_ptr());
    }
    // torch's fallbacks for tensors that are only marked as zero or negative pass over lists of optional ones.
    if (tensor._is_zerotensor()) {
      kept_.push_back(at::zeros(tensor.sizes(), tensor.options()));
    } else {
      check_storage(tensor, name);
      kept_.push_back(tensor.resolve_neg().contiguous());
    }
    return static_cast<const T*>(kept_.back().const_data_ptr());
  }

  Rows rows;

 private:
  std::vector<int64_t> offsets_;
  std::vector<Tensor> kept_;
};

template <class T>
void fill_sizes(ForwardParams<T>& p, const Arguments& arguments, const Shape& s) {
  p.rows = arguments.rows;
  p.I = s.I.expect_int();
  p.H = s.H.expect_int();
  p.P = s.P.expect_int();
  p.D = static_cast<int>(s.D);
  p.allocate = c10::alloc_cpu;
  p.release = c10::free_cpu;
  p.threads = at::in_parallel_region() ? 1 : at::get_num_threads();
}

template <class T>
void fill_forward(ForwardParams<T>& p, Arguments& arguments, const Tensor& x, at::TensorList hx,
                  at::TensorList weights, const Shape& s) {
  fill_sizes(p, arguments, s);
  const int64_t each = static_cast<int64_t>(weights.size()) / s.D;
  for (const auto d : c10::irange(s.D)) {
    const at::TensorList w = weights.slice(d * each, each);
    const bool bias = each >= 4;
    p.weights[d] = {arguments.read<T>(w[0], "W_ih"), arguments.read<T>(w[1], "W_hh"),
                    bias ? arguments.read<T>(w[2], "b_ih") : nullptr,
                    bias ? arguments.read<T>(w[3], "b_hh") : nullptr,
                    s.projected ? arguments.read<T>(w[each - 1], "W_hr") : nullptr};
  }
  p.x = arguments.read<T>(x, "input");
  p.h0 = hx.empty() ? nullptr : arguments.read<T>(hx[0], "h_0");
  p.c0 = hx.size() < 2 ? nullptr : arguments.read<T>(hx[1], "c_0");
}

template <class T>
T* data(const Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

// Where a layer is computed; for CUDA see torch/cuda.h. An object of it lives while a layer is.
struct Cpu {
  static constexpr bool computes = true, has_half = false, copies_y = true;
  explicit Cpu(const Tensor&) {}

  template <class T>
  void forward(const cpu::CellKernels& cell, ForwardParams<T>& p) const {
    cell.of<T>().forward(p);
  }
  template <class T>
  void backward(const cpu::CellKernels& cell, BackwardParams<T>& p) const {
    cell.of<T>().backward(p);
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
variable_list layer_forward(const Tensor& x, const optional<Tensor>& batch_sizes, at::TensorList hx,
                            at::TensorList weights, const std::string& cell_name, bool bidirectional,
                            bool batch_first, bool save) {
  const cpu::CellKernels& cell = find_cell(cell_name);
  const Shape s = check_shape(x, batch_sizes, hx, weights, cell, bidirectional, batch_first);
  if constexpr (Backend::computes) {
    if (s.R != 0 && s.has_empty_weights())
      return differentiable_forward(x, batch_sizes, hx, weights, cell_name, bidirectional, batch_first, save);
  }
  variable_list outputs;
  outputs.reserve(6);
  const auto allocate = [&](const char*, at::SymIntArrayRef size, at::ScalarType dtype) {
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
      Arguments arguments(x, batch_sizes, s, batch_first);
      ForwardParams<T> p{};
      fill_forward(p, arguments, x, hx, weights, s);
      size_t i = 0;
      p.y = data<T>(outputs[i++]);
      if (!s.step) p.hn = data<T>(outputs[i++]);
      if (s.has_c) p.cn = data<T>(outputs[i++]);
      if (save && s.S > 0) p.s = data<Real<T>>(outputs[i++]);
      if (save && s.has_c) p.c = data<Real<T>>(outputs[i++]);
      if (copies_y && Backend::copies_y) p.y_copy = data<T>(outputs[i++]);
      backend.forward(cell, p);
    });
    if (copies_y && !Backend::copies_y) outputs.back().copy_(outputs[0]);
  }
  return outputs;
}

template <class Backend>
variable_list layer(const Tensor& x, const optional<Tensor>& batch_sizes, at::TensorList hx,
                    at::TensorList weights, const std::string& cell, bool bidirectional, bool batch_first,
                    bool /*checkpoint_gates*/) {
  return layer_forward<Backend>(x, batch_sizes, hx, weights, cell, bidirectional, batch_first, false);
}

void check_gradients(const c10::List<optional<Tensor>>& grads, const Tensor& x, const Shape& s) {
  const size_t expected = 1 + !s.step + s.has_c;
  TORCH_CHECK(grads.size() == expected, "grads: expected one or None for each of ", expected,
              " result(s), got ", grads.size());
  size_t i = 0;
  for_each_result(x, s, [&](const char* name, at::SymIntArrayRef size, at::ScalarType dtype) {
    const optional<Tensor> grad = grads.get(i++);
    if (grad) check_tensor(*grad, std::string("d") + name, size, dtype, x);
  });
}

void check_saved(at::TensorList saved, const Tensor& x, const Shape& s) {
  const size_t expected = (s.S > 0) + s.has_c + s.needs_y;
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
variable_list layer_backward(const c10::List<optional<Tensor>>& grads, const Tensor& x,
                             const optional<Tensor>& batch_sizes, at::TensorList hx, at::TensorList weights,
                             const std::string& cell_name, bool bidirectional, bool batch_first,
                             at::TensorList saved, c10::List<bool> wanted) {
  const cpu::CellKernels& cell = find_cell(cell_name);
  const Shape s = check_shape(x, batch_sizes, hx, weights, cell, bidirectional, batch_first);
  if constexpr (Backend::
                    computes) {  // compiled autograd traces with stand-ins for the gradients, of any size
    check_gradients(grads, x, s);
    check_saved(saved, x, s);
  }
  std::vector<Tensor> inputs{x};
  inputs.insert(inputs.end(), hx.begin(), hx.end());
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  TORCH_CHECK(wanted.size() == inputs.size(), "wanted: expected ", inputs.size(), " flags, got ",
              wanted.size());
  if constexpr (Backend::computes) {
    if (s.R != 0 && s.has_empty_weights()) {
      variable_list given;
      for (const optional<Tensor> grad : grads) given.push_back(grad.value_or(Tensor()));
      return differentiable_backward(given, x, batch_sizes, hx, weights, cell_name, bidirectional,
                                     batch_first, wanted);
    }
  }
  std::vector<Tensor> all(inputs.size());
  variable_list result;
  for (const auto i : c10::irange(inputs.size())) {
    if (!wanted[i]) continue;
    all[i] = at::empty_like(inputs[i], inputs[i].options(), at::MemoryFormat::Contiguous);
    result.push_back(all[i]);
  }
  if constexpr (Backend::computes) {
    const auto grad = [&](size_t i) { return grads.get(i).value_or(Tensor()); };
    const size_t h_grad = s.step ? 0 : 1;  // where h_n's would be; for a step c_n follows y
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
      Arguments arguments(x, batch_sizes, s, batch_first);
      BackwardParams<T> p{};
      fill_sizes(p, arguments, s);
      size_t i = 0;
      if (s.S > 0) p.s = const_cast<Real<T>*>(arguments.read<Real<T>>(saved[i++], "saved s"));
      if (s.has_c) p.c = const_cast<Real<T>*>(arguments.read<Real<T>>(saved[i++], "saved c"));
      if (s.needs_y) p.y = const_cast<T*>(arguments.read<T>(saved[i++], "saved y"));
      p.dy = arguments.read<T>(grad(0), "dy");
      if (!s.step) p.dhn = arguments.read<T>(grad(1), "dh_n");
      if (s.has_c) p.dcn = arguments.read<T>(grad(h_grad + 1), "dc_n");
      p.dx = data<T>(all[0]);
      if (!hx.empty()) p.dh0 = data<T>(all[1]);
      if (hx.size() == 2) p.dc0 = data<T>(all[2]);
      const size_t each = weights.size() / s.D;
      bool wants_W_ih = false, wants_W_hh = false;
      for (const auto d : c10::irange(s.D)) {
        const Tensor *w = &weights[d * each], *dw = &all[1 + hx.size() + d * each];
        const bool bias = each >= 4;
        p.dweights[d] = {data<T>(dw[0]), data<T>(dw[1]), bias ? data<T>(dw[2]) : nullptr,
                         bias ? data<T>(dw[3]) : nullptr, s.projected ? data<T>(dw[each - 1]) : nullptr};
        p.weights[d] = {p.dx ? arguments.read<T>(w[0], "W_ih") : nullptr, arguments.read<T>(w[1], "W_hh"),
                        nullptr, nullptr, s.projected ? arguments.read<T>(w[each - 1], "W_hr") : nullptr};
        wants_W_ih |= dw[0].defined();
        wants_W_hh |= dw[1].defined();
      }
      // What is not read may have no memory any more; see kept_for_backward.
      if (wants_W_ih) p.x = arguments.read<T>(x, "input");
      if (!hx.empty() && (wants_W_hh || cell.reads_h)) p.h0 = arguments.read<T>(hx[0], "h_0");
      if (hx.size() == 2) p.c0 = arguments.read<T>(hx[1], "c_0");
      backend.backward(cell, p);
    });
  }
  return result;
}

}  // namespace

void check_layer(const Tensor& x, const optional<Tensor>& batch_sizes, at::TensorList hx,
                 at::TensorList weights, const std::string& cell, bool bidirectional, bool batch_first) {
  check_shape(x, batch_sizes, hx, weights, find_cell(cell), bidirectional, batch_first);
}

Which kept_for_backward(const Tensor& x, const optional<Tensor>& batch_sizes, at::TensorList hx,
                        at::TensorList weights, bool bidirectional, bool batch_first, Which wanted) {
  const WeightLayout layout = weight_layout(weights, bidirectional);
  const bool step = x.dim() == 2 && !batch_sizes;
  const bool several_steps =
      batch_sizes ? batch_sizes->size(0) > 1 : !step && x.size(batch_first ? 1 : 0) > 1;
  const Which x_bit = 1, h_0_bit = hx.empty() ? 0 : 2, c_0_bit = hx.size() == 2 ? 4 : 0;
  Which kept = c_0_bit;
  for (const auto d : c10::irange(layout.D)) {
    const size_t first = 1 + hx.size() + d * layout.each;
    const Which W_ih = Which{1} << first, W_hh = W_ih << 1, W_hr = W_ih << (layout.each - 1);
    if (wanted & W_ih) kept |= x_bit;                       // dW_ih = dgates^T x
    if (wanted & W_hh) kept |= h_0_bit;                     // dW_hh = dgates^T h
    if (wanted & x_bit) kept |= W_ih;                       // dx = dgates W_ih
    if (several_steps || (wanted & h_0_bit)) kept |= W_hh;  // dh = dgates W_hh
    if (layout.projected()) kept |= W_hr;
  }
  return kept;
}

TORCH_LIBRARY(fastrnn, m) {
  m.def(
      "rnn(Tensor input, Tensor? batch_sizes, Tensor[] hx, Tensor[] weights, str cell, bool has_biases, int "
      "num_layers, "
      "float dropout, bool train, bool bidirectional, bool batch_first, bool checkpoint_gates=False) -> "
      "Tensor[]");
  m.def("cell(Tensor input, Tensor[] hx, Tensor[] weights, str cell) -> Tensor[]");
  m.def(
      "layer(Tensor x, Tensor? batch_sizes, Tensor[] hx, Tensor[] weights, str cell, bool bidirectional, "
      "bool batch_first, bool checkpoint_gates=False) -> Tensor[]");
  m.def(
      "layer_forward(Tensor x, Tensor? batch_sizes, Tensor[] hx, Tensor[] weights, str cell, bool "
      "bidirectional, "
      "bool batch_first, bool save) -> Tensor[]");
  m.def(
      "layer_backward(Tensor?[] grads, Tensor x, Tensor? batch_sizes, Tensor[] hx, Tensor[] weights, str "
      "cell, "
      "bool bidirectional, bool batch_first, Tensor[] saved, bool[] wanted) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("layer", layer<Cpu>);
  m.impl("layer_forward", layer_forward<Cpu>);
  m.impl("layer_backward", layer_backward<Cpu>);
}
#ifdef FASTRNN_CUDA
TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) {
  m.impl("layer", layer<Cuda>);
  m.impl("layer_forward", layer_forward<Cuda>);
  m.impl("layer_backward", layer_backward<Cuda>);
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
  m.impl("layer", layer<Meta>);
  m.impl("layer_forward", layer_forward<Meta>);
  m.impl("layer_backward", layer_backward<Meta>);
}

}  // namespace fastrnn::torch_ops
