#include "torch/frozen.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/util/irange.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "cpu/dispatch.h"
#include "cpu/frozen.h"
#include "torch/arguments.h"
#include "torch/stack.h"

namespace fastrnn::torch_ops {
namespace {

using cells::ParameterKind;

// Calls f with zeros of what a frozen layer computes with and of what its weights are, and with what holds these.
template <class F>
void with_types(at::ScalarType dtype, const std::string& weights, const F& f) {
  if (dtype == at::kFloat && weights == "float32") return f(float{}, float{}, at::kFloat);
  if (dtype == at::kFloat && weights == "bfloat16") return f(float{}, bf16_weight{}, at::kBFloat16);
  if (dtype == at::kFloat && weights == "int8") return f(float{}, int8_weight{}, at::kChar);
  if (dtype == at::kFloat && weights == "int8_wide") return f(float{}, int8_wide_weight{}, at::kChar);
  if (dtype == at::kDouble && weights == "float64") return f(double{}, double{}, at::kDouble);
  if (dtype == at::kBFloat16 && weights == "bfloat16") return f(bf16{}, bf16{}, at::kBFloat16);
  TORCH_CHECK_NOT_IMPLEMENTED(false,
                              "weights: expected float32, bfloat16, int8 or int8_wide for a Float layer, "
                              "float64 for a Double and bfloat16 for a BFloat16 one, got ",
                              weights, " for ", dtype);
}

// Sums of K products of int8 must fit int32, those of a left factor without a sign too.
void check_sums(const std::string& kind, int64_t K) {
  TORCH_CHECK_NOT_IMPLEMENTED(kind != "int8" || K <= 1 << 16, "weights: expected sizes of at most ", 1 << 16,
                              " for int8, got ", K);
}

bool is_matrix(ParameterKind kind) {
  return kind == ParameterKind::input_matrix || kind == ParameterKind::state_matrix ||
         kind == ParameterKind::projection;
}

// Biases as rows of panels: what is added to the input's product, of the first `whole` gates both of them, and to the
// hidden state's.
template <class R, class W>
void pack_bias(const cpu::FrozenMatrix<W>& panels, int whole, const R* b_ih, const R* b_hh, R* b_x, R* b_h) {
  const int G = panels.G;
  for (int64_t first = 0; first < panels.units; first += panels.panel_units()) {
    const int64_t size = std::min(panels.panel_units(), panels.units - first);
    for (const auto g : c10::irange(G)) {
      for (const auto unit : c10::irange(size)) {
        const int64_t from = g * panels.units + first + unit, to = first * G + g * size + unit;
        const R x = b_ih ? b_ih[from] : R{}, h = b_hh ? b_hh[from] : R{};
        b_x[to] = g < whole ? x + h : x;
        if (g >= whole) b_h[to] = h;
      }
    }
  }
}

template <class T, class W>
cpu::FrozenMatrix<W> matrix_of(int64_t N, int64_t K) {
  return {N, 1, cpu::FrozenLayout<T, W>::blocks_of(1), K};
}

// What the operators are given of a frozen layer, beside tensors.
struct Frozen {
  int cell;
  at::ScalarType dtype;
  const std::string& weights;
  int64_t I, H, proj;
  int64_t D;
  at::ArrayRef<double> zoneout;

  const CellInfo& info() const { return cpu::info_of(cell); }
  int64_t P() const { return proj > 0 ? proj : H; }

  void check_sizes() const {
    TORCH_CHECK(I > 0 && H > 0, "input_size and hidden_size: expected at least 1, got ", I, " and ", H);
    TORCH_CHECK(proj == 0 || (0 < proj && proj < H && info().can(cells::Needs::projection)),
                "proj_size: expected 0, or less than ", H, " for a cell that has a projection, got ", proj,
                " for ", info().name);
  }
};

// A layer to be computed, or a step of a cell.
struct FrozenArgs {
  const Frozen& f;
  const Tensor& x;
  const optional<Tensor>& batch_sizes;
  at::TensorList hx, packed;
  bool step, batch_first;
  const optional<Tensor>& resets;
  bool every;  // are the states beside h of every step wanted?

  c10::SymInt T() const {
    return step ? c10::SymInt(1) : batch_sizes ? batch_sizes->sym_size(0) : x.sym_size(batch_first);
  }
  c10::SymInt B() const { return batch_sizes ? hx[0].sym_size(1) : x.sym_size(step || batch_first ? 0 : 1); }
};

// Computes layers that it has been given, all at once.
class FrozenRun {
 public:
  virtual ~FrozenRun() = default;
  virtual void add(const FrozenArgs& args, const variable_list& outputs) = 0;
  virtual void run() = 0;
};

template <class T_, class W>
class FrozenRunOf : public FrozenRun {
 public:
  explicit FrozenRunOf(int cell) : cell_(cpu::cell_of<T_>(cell, cpu::isa_with<cpu::Engine<T_>>())) {}

  void add(const FrozenArgs& args, const variable_list& outputs) override {
    const Frozen& f = args.f;
    const CellInfo& info = f.info();
    arguments_.emplace_back(args.x, args.batch_sizes, args.T().expect_int(), args.B().expect_int(),
                            args.batch_first && !args.step);
    Arguments& arguments = arguments_.back();
    const cpu::FrozenLayout<T_, W> layout(info, f.I, f.H, f.P(), f.proj > 0);
    ForwardParams<T_>& p = params_.emplace_back();
    p.rows = arguments.rows;
    p.I = args.x.size(-1);
    p.H = f.H;
    p.P = f.P();
    p.D = static_cast<int>(f.D);
    for (const auto d : c10::irange(f.D)) {
      const Tensor& bytes = args.packed[d];
      TORCH_CHECK(bytes.scalar_type() == at::kByte && bytes.is_cpu() && bytes.numel() == layout.bytes,
                  "packed: expected ", layout.bytes,
                  " bytes of a frozen layer of this cell and these sizes, got ", bytes.numel(), " of ",
                  bytes.scalar_type());
      p.frozen[d] = reinterpret_cast<const char*>(arguments.template read<uint8_t>(bytes, "packed"));
      const auto* units = reinterpret_cast<const T_*>(p.frozen[d] + layout.at_unit);
      for (const auto k : c10::irange(info.unit_vectors())) p.weights[d].unit[k] = units + k * f.H;
      // The kernels see by it whether there is a projection.
      if (f.proj > 0) p.weights[d].W_hr = reinterpret_cast<const T_*>(p.frozen[d] + layout.at_W_hr);
    }
    p.x = arguments.template read<T_>(args.x, "input");
    for (const auto i : c10::irange(args.hx.size())) {
      (i == 0 ? p.h0 : p.c0[i - 1]) = arguments.template read<T_>(args.hx[i], info.states[i], "_0");
    }
    if (args.resets) p.resets = arguments.template read<bool>(*args.resets, "resets");
    std::copy(f.zoneout.begin(), f.zoneout.end(), p.noise.zoneout);
    const int64_t C = info.states.size() - 1;
    size_t i = 0;
    p.y = data<T_>(outputs[i++]);
    if (!args.step) p.hn = data<T_>(outputs[i++]);
    for (const auto k : c10::irange(C)) p.cn[k] = data<T_>(outputs[i++]);
    if (args.every && C > 0) p.c = data<Real<T_>>(outputs[i++]);
  }

  void run() override {
    const auto& engine = cpu::frozen_engine<T_, W>();
    const cpu::Resources resources = cpu_resources();
    const auto count = static_cast<int>(params_.size());
    if (count > 1 && engine.forward_stack(cell_, params_.data(), count, resources)) return;
    for (const ForwardParams<T_>& p : params_) engine.forward(cell_, p, resources);
  }

 private:
  const cpu::EngineCell<T_> cell_;
  c10::SmallVector<Arguments, 1> arguments_;
  c10::SmallVector<ForwardParams<T_>, 1> params_;
};

struct OnCpu {
  static constexpr bool computes = true;
  // Past the dispatcher, which takes as long as a small layer.
  static Tensor empty(c10::SymIntArrayRef size, at::ScalarType dtype, const Tensor&) {
    return at::detail::empty_cpu(C10_AS_INTARRAYREF_SLOW(size), dtype);
  }
  static std::unique_ptr<FrozenRun> start(const Frozen& f) {
    std::unique_ptr<FrozenRun> run;
    with_types(f.dtype, f.weights, [&](auto t, auto w, at::ScalarType) {
      run = std::make_unique<FrozenRunOf<decltype(t), decltype(w)>>(f.cell);
    });
    return run;
  }
};
struct OnMeta {
  static constexpr bool computes = false;
  static Tensor empty(c10::SymIntArrayRef size, at::ScalarType dtype, const Tensor& like) {
    return at::empty_symint(size, like.options().dtype(dtype));
  }
  static std::unique_ptr<FrozenRun> start(const Frozen&) { return nullptr; }
};

// The results of a layer, which `run` will compute: y, the last states without h for a step, and with `every` the
// states beside h of each.
template <class Backend>
variable_list add_layer(const FrozenArgs& args, FrozenRun* run) {
  const Frozen& f = args.f;
  const Tensor& x = args.x;
  const CellInfo& info = f.info();
  const int64_t C = info.states.size() - 1, D = f.D, H = f.H;
  TORCH_CHECK(args.hx.empty() || args.hx.size() == static_cast<size_t>(info.states.size()), "hx: expected ",
              info.states.size(), " state(s), got ", args.hx.size());
  for (const auto i : c10::irange(args.hx.size())) {
    const Tensor& state = args.hx[i];
    TORCH_CHECK(state.scalar_type() == f.dtype && state.device() == x.device(), info.states[i],
                "_0: expected ", f.dtype, " on ", x.device(), ", got ", state.scalar_type(), " on ",
                state.device());
  }
  if (args.resets) {
    const Tensor& resets = *args.resets;
    TORCH_CHECK(
        resets.scalar_type() == at::kBool && resets.sym_sizes() == x.sym_sizes().slice(0, x.dim() - 1),
        "resets: expected Bool of size ", x.sym_sizes().slice(0, x.dim() - 1), ", got ", resets.scalar_type(),
        " of size ", resets.sym_sizes());
  }
  variable_list outputs;
  c10::SymDimVector size(x.sym_sizes());
  size.back() = D * f.P();
  outputs.push_back(Backend::empty(size, f.dtype, x));
  const c10::SymInt B = args.B(), h_n[] = {D, B, f.P()}, c_n[] = {D, B, H};
  if (!args.step) outputs.push_back(Backend::empty(h_n, f.dtype, x));
  for ([[maybe_unused]] const auto k : c10::irange(C)) {
    outputs.push_back(Backend::empty(at::SymIntArrayRef(c_n).slice(args.step), f.dtype, x));
  }
  if (args.every && C > 0) {
    c10::SymInt rows = 1;
    for (const auto i : c10::irange(x.dim() - 1)) rows *= x.sym_size(i);
    const c10::SymInt of_c[] = {D, rows, C * H};
    outputs.push_back(Backend::empty(of_c, f.dtype == at::kDouble ? at::kDouble : at::kFloat, x));
  }
  if constexpr (Backend::computes) {
    if (x.numel() == 0) {  // the states stay as they are
      for (const auto i : c10::irange(info.states.size())) {
        Tensor& last = outputs[args.step ? i : i + 1];
        args.hx.empty() ? last.zero_() : last.copy_(args.hx[i]);
      }
    } else {
      run->add(args, outputs);
    }
  }
  return outputs;
}

template <class Backend>
variable_list frozen_rnn(const Tensor& input, const optional<Tensor>& batch_sizes, at::TensorList hx,
                         at::TensorList packed, const std::string& cell, at::ScalarType dtype,
                         const std::string& weights, int64_t input_size, int64_t hidden_size,
                         int64_t proj_size, int64_t num_layers, bool bidirectional, bool batch_first,
                         at::ArrayRef<double> zoneout, const optional<Tensor>& resets, bool all_states) {
  const int64_t D = bidirectional ? 2 : 1;
  const int index = find_cell(cell);
  const CellInfo& info = cpu::info_of(index);
  Frozen f{index, dtype, weights, input_size, hidden_size, proj_size, D, zoneout};
  f.check_sizes();
  TORCH_CHECK(static_cast<int64_t>(packed.size()) == num_layers * D && num_layers > 0,
              "packed: expected a tensor for each of ", num_layers, " layer(s) and ", D,
              " direction(s), got ", packed.size());
  TORCH_CHECK(zoneout.empty() || zoneout.size() == static_cast<size_t>(info.states.size()),
              "zoneout: expected one for each of ", info.states.size(), " states, got ", zoneout.size());
  const int64_t from_input =
      info.has(ParameterKind::input_matrix) ? input_size : D * info.gates.size() * hidden_size;
  const StackSizes sizes{info, num_layers, D, from_input, hidden_size, f.P(), dtype};
  variable_list every;
  const std::unique_ptr<FrozenRun> run = Backend::start(f);
  const auto add = [&](int64_t layer, const Tensor& x, at::TensorList states, bool unbatched) {
    if (layer > 0) f.I = D * f.P();
    optional<Tensor> of_x = resets;
    if (resets && unbatched) of_x = resets->unsqueeze(batch_first ? 0 : 1);
    variable_list outputs = add_layer<Backend>({f, x, batch_sizes, states, packed.slice(layer * D, D), false,
                                                batch_first && !batch_sizes, of_x, all_states},
                                               run.get());
    if (all_states) {
      every.push_back(outputs[0]);
      if (info.states.size() > 1) every.push_back(outputs.back()), outputs.pop_back();
    }
    return outputs;
  };
  const auto finish = [&] {
    if (run) run->run();
  };
  variable_list results = run_layers(input, batch_sizes, hx, sizes, batch_first, add, finish);
  results.insert(results.end(), every.begin(), every.end());
  // Results of an operator are not each other.
  if (all_states) results[0] = results[0].clone();
  return results;
}

template <class Backend>
variable_list frozen_cell(const Tensor& input, at::TensorList hx, const Tensor& packed,
                          const std::string& cell, at::ScalarType dtype, const std::string& weights,
                          int64_t input_size, int64_t hidden_size) {
  const Frozen f{find_cell(cell), dtype, weights, input_size, hidden_size, 0, 1, {}};
  f.check_sizes();
  check_step_dimensions(f.info(), input);
  TORCH_CHECK(input.scalar_type() == dtype, "input: expected dtype ", dtype, ", got ", input.scalar_type());
  return run_one_step(
      input, hx, f.info(), input_size, hidden_size, [&](const Tensor& x, at::TensorList states) {
        const std::unique_ptr<FrozenRun> run = Backend::start(f);
        variable_list outputs = add_layer<Backend>(
            {f, x, std::nullopt, states, packed, true, false, std::nullopt, false}, run.get());
        if (run) run->run();
        return outputs;
      });
}

// x [.., I] times W^T, of which pack_frozen_matrix made `packed`.
template <class Backend>
Tensor frozen_product(const Tensor& x, const Tensor& packed, const std::string& weights,
                      int64_t output_size) {
  TORCH_CHECK(x.dim() > 0, "x: expected at least one dimension, got none");
  c10::SymDimVector size(x.sym_sizes());
  size.back() = output_size;
  Tensor y = at::empty_symint(size, x.options());
  if constexpr (Backend::computes) {
    if (y.numel() == 0) return y;
    with_types(x.scalar_type(), weights, [&](auto t, auto w, at::ScalarType) {
      using T = decltype(t);
      using W = decltype(w);
      const int64_t K = x.size(-1), R = y.numel() / output_size;
      const int64_t bytes = matrix_of<T, W>(output_size, K).bytes();
      TORCH_CHECK(packed.scalar_type() == at::kByte && packed.is_cpu() && packed.numel() == bytes,
                  "packed: expected ", bytes, " bytes of a matrix [", output_size, ", ", K, "], got ",
                  packed.numel());
      Arguments arguments(x, std::nullopt, 1, R, false);
      const auto* from = reinterpret_cast<const char*>(arguments.read<uint8_t>(packed, "packed"));
      cpu::frozen_engine<T, W>().multiply({R, K, output_size, arguments.read<T>(x, "x"), from, data<T>(y)},
                                          cpu_resources());
    });
  }
  return y;
}

// Refuses what wants a gradient.
template <class Function>
struct Inference;
template <class Result, class... Args>
struct Inference<Result(Args...)> {
  static void refuse(const Tensor& tensor, const char* name = "input") {
    TORCH_CHECK(!tensor.requires_grad() || !at::GradMode::is_enabled(), name,
                ": expected none that requires a gradient, for a frozen layer is for inference: call it in "
                "torch.no_grad(), or the layer that it was made of");
    TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::isFwGradDefined(tensor), name,
                                ": expected none with a tangent, for a frozen layer is for inference: call "
                                "the layer that it was made of");
  }
  static void refuse(at::TensorList tensors) {
    for (const Tensor& tensor : tensors) refuse(tensor, "hx");
  }
  template <class Other>
  static void refuse(const Other&) {}

  template <const char* name>
  static Result run(Args... args) {
    (refuse(args), ...);
    const at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = find_operator<Result(Args...)>(name);
    return op.call(args...);
  }
};
constexpr char kFrozenRnn[] = "fastrnn::frozen_rnn", kFrozenCell[] = "fastrnn::frozen_cell",
               kFrozenProduct[] = "fastrnn::frozen_product";

}  // namespace

Tensor pack_frozen(at::TensorList weights, at::TensorList scales, const std::string& cell,
                   at::ScalarType dtype, const std::string& kind) {
  const CellInfo& info = cpu::info_of(find_cell(cell));
  const WeightLayout layout = weight_layout(info, weights, false);
  layout.check_matrices(weights);
  const int64_t H = layout.H(weights).expect_int(), P = layout.P(weights).expect_int();
  const int64_t I = info.has(ParameterKind::input_matrix) ? layout.I(weights).expect_int() : 0;
  check_sums(kind, std::max({I, P, H}));
  Tensor packed;
  with_types(dtype, kind, [&](auto t, auto w, at::ScalarType stored) {
    using T = decltype(t);
    using W = decltype(w);
    const cpu::FrozenLayout<T, W> to(info, I, H, P, layout.projected);
    packed = at::zeros({to.bytes}, at::kByte);
    char* const bytes = reinterpret_cast<char*>(packed.mutable_data_ptr<uint8_t>());
    Tensor b_ih, b_hh;
    size_t matrices = 0;
    layout.for_each([&](const cells::Parameter& parameter, int place, int vectors) {
      const Tensor given = weights[place].contiguous();
      TORCH_CHECK(given.is_cpu() && given.scalar_type() == (is_matrix(parameter.kind) ? stored : dtype),
                  parameter.symbol, ": expected ", is_matrix(parameter.kind) ? stored : dtype,
                  " on the CPU, got ", given.scalar_type(), " on ", given.device());
      const float* scale = nullptr;
      if (is_matrix(parameter.kind) && sizeof(W) == 1) {
        TORCH_CHECK(matrices < scales.size(), "scales: expected one for each matrix, got ", scales.size());
        const Tensor& of_rows = scales[matrices++];
        TORCH_CHECK(of_rows.is_contiguous() && of_rows.scalar_type() == at::kFloat &&
                        of_rows.numel() == given.size(0),
                    "scales: expected ", given.size(0), " Float numbers for ", parameter.symbol);
        scale = of_rows.const_data_ptr<float>();
      }
      const auto* matrix = static_cast<const W*>(given.const_data_ptr());
      switch (parameter.kind) {
        case ParameterKind::input_matrix:
          return to.W_ih.pack(matrix, scale, bytes + to.at_W_ih);
        case ParameterKind::state_matrix: {
          const int64_t early = to.W_hh.G * H;
          to.W_hh.pack(matrix, scale, bytes + to.at_W_hh);
          if (info.late_gates > 0)
            to.W_late.pack(matrix + early * P, scale ? scale + early : nullptr, bytes + to.at_W_late);
          return;
        }
        case ParameterKind::projection:
          return to.W_hr.pack(matrix, scale, bytes + to.at_W_hr);
        case ParameterKind::input_bias:
          b_ih = given;
          return;
        case ParameterKind::state_bias:
          b_hh = given;
          return;
        default:
          std::memcpy(bytes + to.at_unit + vectors * to.unit_stride, given.const_data_ptr(), given.nbytes());
      }
    });
    const auto real = [](Tensor& bias) -> const Real<T>* {
      if (!bias.defined()) return nullptr;
      bias = bias.to(std::is_same_v<T, double> ? at::kDouble : at::kFloat);
      return static_cast<const Real<T>*>(bias.const_data_ptr());
    };
    auto* const b_x = reinterpret_cast<Real<T>*>(bytes + to.at_b_x);
    auto* const b_h = reinterpret_cast<Real<T>*>(bytes + to.at_b_h);
    pack_bias(to.W_ih, info.whole_gates, real(b_ih), real(b_hh), b_x, b_h);
  });
  return packed;
}

Tensor pack_frozen_matrix(const Tensor& matrix, const optional<Tensor>& scales, at::ScalarType dtype,
                          const std::string& kind) {
  Tensor packed;
  with_types(dtype, kind, [&](auto t, auto w, at::ScalarType stored) {
    using W = decltype(w);
    TORCH_CHECK(matrix.dim() == 2 && matrix.scalar_type() == stored && matrix.is_contiguous(),
                "matrix: expected a contiguous matrix of ", stored, ", got ", matrix.scalar_type());
    TORCH_CHECK(sizeof(W) > 1 || (scales && scales->scalar_type() == at::kFloat && scales->is_contiguous() &&
                                  scales->numel() == matrix.size(0)),
                "scales: expected ", matrix.size(0), " Float numbers for int8");
    check_sums(kind, matrix.size(1));
    const auto to = matrix_of<decltype(t), W>(matrix.size(0), matrix.size(1));
    packed = at::empty({to.bytes()}, at::kByte);
    to.pack(static_cast<const W*>(matrix.const_data_ptr()),
            scales ? scales->const_data_ptr<float>() : nullptr,
            reinterpret_cast<char*>(packed.mutable_data_ptr<uint8_t>()));
  });
  return packed;
}

TORCH_LIBRARY_FRAGMENT(fastrnn, m) {
  m.def("frozen_product(Tensor x, Tensor packed, str weights, int output_size) -> Tensor");
  m.def(
      "frozen_rnn(Tensor input, Tensor? batch_sizes, Tensor[] hx, Tensor[] packed, str cell, ScalarType "
      "dtype, "
      "str weights, int input_size, int hidden_size, int proj_size, int num_layers, bool "
      "bidirectional, "
      "bool batch_first, float[] zoneout=[], Tensor? resets=None, bool all_states=False) -> Tensor[]");
  m.def(
      "frozen_cell(Tensor input, Tensor[] hx, Tensor packed, str cell, ScalarType dtype, str weights, "
      "int "
      "input_size, int hidden_size) -> Tensor[]");
}
TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("frozen_rnn", frozen_rnn<OnCpu>);
  m.impl("frozen_cell", frozen_cell<OnCpu>);
  m.impl("frozen_product", frozen_product<OnCpu>);
}
void refuse_device(const c10::OperatorHandle&, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "input: expected a tensor on the CPU, where frozen layers are computed");
}
TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) {
  for (const char* name : {"frozen_rnn", "frozen_cell", "frozen_product"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse_device>());
  }
}
TORCH_LIBRARY_IMPL(fastrnn, Meta, m) {
  m.impl("frozen_rnn", frozen_rnn<OnMeta>);
  m.impl("frozen_cell", frozen_cell<OnMeta>);
  m.impl("frozen_product", frozen_product<OnMeta>);
}
TORCH_LIBRARY_IMPL(fastrnn, Autograd, m) {
  m.impl("frozen_rnn", Inference<FrozenRnnFunction>::run<kFrozenRnn>);
  m.impl("frozen_cell", Inference<FrozenCellFunction>::run<kFrozenCell>);
  m.impl("frozen_product", Inference<FrozenProductFunction>::run<kFrozenProduct>);
}

}  // namespace fastrnn::torch_ops
