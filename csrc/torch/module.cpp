// fastrnn._C: what was built and what is in use. Importing it registers the operators.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <optional>
#include <set>

#include "cells/registry.h"
#include "cpu/cell_table.h"
#include "cpu/dispatch.h"
#include "cpu/plan.h"
#include "cpu/threads/core_latency.h"
#include "cuda/persistent/tiling.h"
#include "cuda/plan.h"
#include "torch/frozen.h"
#include "torch/layer.h"
#include "torch/operators.h"
#ifdef FASTRNN_CUDA
#include "cuda/device.h"
#include "torch/cuda.h"
#endif

namespace py = pybind11;
namespace cpu = fastrnn::cpu;
namespace cuda = fastrnn::cuda;
namespace cells = fastrnn::cells;
namespace ops = fastrnn::torch_ops;

namespace {

// glibc returns the top of the heap to the system when more of it is free than twice the largest block so far
// that was mapped and freed on its own. The gradients of a layer of 256 units are at that limit: freed and
// allocated in every training step, they cost page faults that can take longer than the step. A larger block
// raises the limit, as the first larger tensor of the process would. It is never touched.
void raise_trim_threshold() {
  constexpr size_t kBytes = 16 << 20;
  void* volatile block = std::malloc(kBytes);  // volatile, or the compiler leaves both calls out
  std::free(block);
}

cuda::Math find_math(const std::string& name) {
  const std::pair<const char*, cuda::Math> all[] = {{"fp64", cuda::Math::fp64},
                                                    {"ieee", cuda::Math::ieee},
                                                    {"tf32", cuda::Math::tf32},
                                                    {"fp16", cuda::Math::fp16},
                                                    {"bf16", cuda::Math::bf16}};
  for (const auto& [known, math] : all) {
    if (name == known) return math;
  }
  throw std::invalid_argument("math: expected fp64, ieee, tf32, fp16 or bf16, got '" + name + "'");
}

py::dict describe(const cuda::Problem& problem, const cuda::Plan& p) {
  const int units = p.row_warps * cuda::warp_rows(problem.cell->gates.size(), problem.backward).units();
  std::vector<std::string> refused;
  for (const cuda::Kind kind : {cuda::Kind::cluster, cuda::Kind::grid}) {
    if (kind > p.kind && p.refused & cuda::bit_of(kind)) refused.push_back(cuda::name_of(kind));
  }
  using namespace py::literals;
  return py::dict("kind"_a = cuda::name_of(p.kind), "reason"_a = p.reason, "refused"_a = refused,
                  "directions"_a = p.directions, "block_groups"_a = p.block_groups, "blocks"_a = p.blocks,
                  "row_warps"_a = p.row_warps, "k_warps"_a = p.k_warps, "units_of_block"_a = units,
                  "tiles"_a = p.tiles, "tile_batch"_a = p.tile_batch, "shared_bytes"_a = p.shared_bytes);
}

// The index of a cell that has CUDA kernels.
int find_cuda_cell(const std::string& name) {
  const int cell = ops::find_cell(name);
  if (cell >= cells::kCellCount) {
    throw std::invalid_argument("cell: expected one with CUDA kernels, got '" + name + "'");
  }
  return cell;
}

py::dict plan(const std::string& cell, const std::string& math, bool backward, bool projected, bool noisy,
              int64_t T, int64_t B, int64_t H, int D, int sms, int capability, int64_t shared_bytes,
              const std::array<int, cuda::kMostCluster>& clusters, const std::optional<std::string>& kind,
              const std::set<std::string>& fitting) {
  const cuda::Problem problem{
      &cpu::info_of(find_cuda_cell(cell)), find_math(math), backward, projected, noisy, T, B, H, D};
  const cuda::Device device{sms, capability, shared_bytes, clusters};
  const std::optional<cuda::Kind> forced = kind ? cuda::find_kind(*kind) : std::nullopt;
  if (kind && !forced) {
    throw std::invalid_argument(std::string("kind: expected ") + cuda::kKindNames + ", got '" + *kind + "'");
  }
  const auto fits = [&](const cuda::Plan& plan) { return fitting.count(cuda::name_of(plan.kind)) > 0; };
  return describe(problem, cuda::find_plan(problem, device, forced, 0, fits));
}

#ifdef FASTRNN_CUDA
py::dict plan_here(const std::string& cell, const std::string& math, bool backward, bool projected,
                   bool noisy, int64_t T, int64_t B, int64_t H, int D) {
  const int index = find_cuda_cell(cell);
  const cuda::Problem problem{&cpu::info_of(index), find_math(math), backward, projected, noisy, T, B, H, D};
  return describe(problem, ops::plan_on_device(index, problem));
}

py::dict device() {
  const cuda::Device& here = cuda::current_device();
  using namespace py::literals;
  return py::dict("sms"_a = here.sms, "capability"_a = here.capability, "shared_bytes"_a = here.shared_bytes,
                  "clusters"_a = here.clusters);
}
#endif

py::dict describe(const cpu::LayerPlan& layer) {
  const cpu::Plan& plan = layer.plan;
  const cpu::StepProduct& product = layer.product;
  using namespace py::literals;
  return py::dict(
      "threads"_a = plan.threads, "sharing"_a = cpu::name_of(plan.sharing()),
      "batch_groups"_a = plan.batch_groups, "reason"_a = plan.reason, "side_by_side"_a = plan.side_by_side,
      "packed"_a = product.packed, "panels"_a = product.panels, "panel_units"_a = product.panel_units,
      "tile_rows"_a = product.tile_rows, "tile_vectors"_a = product.tile_vectors, "lanes"_a = product.lanes);
}

template <class T>
py::dict cpu_plan_of(int cell, const cpu::LayerSizes& sizes, int threads) {
  const cpu::Kernels<T> kernels = cpu::kernels_of<T>(cell);
  using namespace py::literals;
  return py::dict("forward"_a = describe(kernels.plan(sizes, cpu::Pass::forward, threads)),
                  "backward"_a = describe(kernels.plan(sizes, cpu::Pass::backward, threads)));
}

py::dict cpu_plan(const std::string& cell, const std::string& dtype, int64_t T, int64_t B, int64_t I,
                  int64_t H, int64_t P, int D, int threads) {
  const int index = ops::find_cell(cell);
  if (std::min({T, B, I, H, P}) < 1 || D < 1 || D > 2 || threads < 1) {
    throw std::invalid_argument("sizes and threads: expected positive numbers, and D = 1 or 2");
  }
  const cpu::LayerSizes sizes{.T = T, .B = B, .I = I, .H = H, .P = P, .D = D, .rows = T * B};
  if (dtype == "float32") return cpu_plan_of<float>(index, sizes, threads);
  if (dtype == "float64") return cpu_plan_of<double>(index, sizes, threads);
  if (dtype == "bfloat16") return cpu_plan_of<fastrnn::bf16>(index, sizes, threads);
  throw std::invalid_argument("dtype: expected float32, float64 or bfloat16, got '" + dtype + "'");
}

// A CellInfo as Python has it (fastrnn/cells.py).
py::dict describe(const cells::CellInfo& cell) {
  const auto name_of = [](cells::ParameterKind kind) {
    switch (kind) {
      case cells::ParameterKind::input_matrix:
        return "input_matrix";
      case cells::ParameterKind::state_matrix:
        return "state_matrix";
      case cells::ParameterKind::input_bias:
        return "input_bias";
      case cells::ParameterKind::state_bias:
        return "state_bias";
      case cells::ParameterKind::unit_vectors:
        return "unit_vectors";
      case cells::ParameterKind::gate_vector:
        return "gate_vector";
      case cells::ParameterKind::projection:
        return "projection";
    }
    return "";
  };
  const auto needs_of = [](cells::Needs needs) {
    return needs == cells::Needs::always ? "always" : needs == cells::Needs::bias ? "bias" : "projection";
  };
  using namespace py::literals;
  py::list parameters;
  for (const cells::Parameter& p : cell.parameters) {
    parameters.append(py::dict("symbol"_a = p.symbol, "name"_a = p.name, "kind"_a = name_of(p.kind),
                               "needs"_a = needs_of(p.needs), "rows"_a = p.rows));
  }
  return py::dict("name"_a = cell.name, "layer"_a = cell.layer,
                  "gates"_a = std::vector<std::string>(cell.gates.begin(), cell.gates.end()),
                  "saved"_a = cell.saved, "whole_gates"_a = cell.whole_gates, "reads_h"_a = cell.reads_h,
                  "late_gates"_a = cell.late_gates, "normalised"_a = cell.normalised,
                  "states"_a = std::vector<std::string>(cell.states.begin(), cell.states.end()),
                  "parameters"_a = parameters, "nonlinearity"_a = cell.nonlinearity);
}

// What holds an operator's argument between Python and the operator.
template <class T>
struct Held {
  using type = T;
};
template <>
struct Held<at::TensorList> {
  using type = const std::vector<at::Tensor>&;
};
template <>
struct Held<at::ArrayRef<double>> {
  using type = const std::vector<double>&;
};

// A call of an operator through torch's dispatcher, as torch.ops makes it, but with arguments of types that the
// compiler knows. torch.ops finds them out in every call: 2.4 us, which is more than a small step takes.
template <class Result, class... Args>
auto call_of(const char* name, Result (*)(Args...) /*its type*/) {
  const auto op = ops::find_operator<Result(Args...)>(name);
  return torch::wrap_pybind_function_no_gil(
      [op](typename Held<Args>::type... args) { return op.call(args...); });
}

// Calls of fastrnn::frozen_rnn or frozen_cell with the same options. Python would convert these in every call, which is
// half of what a small step takes.
struct FrozenCall {
  std::string cell;
  at::ScalarType dtype;
  std::string weights;
  int64_t input_size, hidden_size, proj_size, num_layers;
  bool bidirectional, batch_first, is_step;
  std::vector<double> zoneout;

  // input and hx: as torch.nn's layers take them; buffers: a dict of the packed weights. Returns what they return, or
  // None for what is not plainly a call with tensors of this dtype.
  py::object call(py::handle input, py::handle hx, const py::dict& buffers) const {
    if (!THPVariable_CheckExact(input.ptr())) return py::none();
    const at::Tensor& x = THPVariable_Unpack(input.ptr());
    if (x.scalar_type() != dtype) return py::none();
    c10::SmallVector<at::Tensor, 4> states, packed;
    const bool several = PyTuple_CheckExact(hx.ptr());
    if (!hx.is_none()) {
      const size_t count = several ? PyTuple_GET_SIZE(hx.ptr()) : 1;
      if ((count > 1) != several || count != size_t(cpu::info_of(index).states.size())) return py::none();
      for (size_t i = 0; i < count; ++i) {
        PyObject* const state = several ? PyTuple_GET_ITEM(hx.ptr(), i) : hx.ptr();
        if (!THPVariable_CheckExact(state)) return py::none();
        states.push_back(THPVariable_Unpack(state));
        if (states.back().scalar_type() != dtype) return py::none();
      }
    }
    for (const auto& [name, buffer] : buffers) {
      if (!THPVariable_CheckExact(buffer.ptr())) return py::none();
      packed.push_back(THPVariable_Unpack(buffer.ptr()));
    }
    if (packed.empty()) return py::none();
    std::vector<at::Tensor> results;
    {
      const py::gil_scoped_release no_gil;
      if (is_step) {
        static const auto op = ops::find_operator<ops::FrozenCellFunction>("fastrnn::frozen_cell");
        results = op.call(x, states, packed[0], cell, dtype, weights, input_size, hidden_size);
      } else {
        static const auto op = ops::find_operator<ops::FrozenRnnFunction>("fastrnn::frozen_rnn");
        results = op.call(x, std::nullopt, states, packed, cell, dtype, weights, input_size, hidden_size,
                          proj_size, num_layers, bidirectional, batch_first, zoneout, std::nullopt, false);
      }
    }
    const size_t first = is_step ? 0 : 1, count = results.size() - first;
    const auto wrap = [&](size_t i) {
      return py::reinterpret_steal<py::object>(THPVariable_Wrap(results[i]));
    };
    py::object last;
    if (count == 1) {
      last = wrap(first);
    } else {
      py::tuple all(count);
      for (size_t i = 0; i < count; ++i) all[i] = wrap(first + i);
      last = std::move(all);
    }
    return is_step ? last : py::make_tuple(wrap(0), last);
  }

  int index = ops::find_cell(cell);
};

}  // namespace

PYBIND11_MODULE(_C, m) {
  raise_trim_threshold();
  m.attr("torch_version") = TORCH_VERSION;
#ifdef FASTRNN_CUDA
  m.attr("cuda_built") = true;
  m.attr("cuda_archs") = std::vector<std::string>{FASTRNN_CUDA_ARCHS};
#else
  m.attr("cuda_built") = false;
  m.attr("cuda_archs") = std::vector<std::string>{};
#endif
  m.def("isas_built", &cpu::isas_built, "Instruction sets this build has kernels for.");
  m.def("isas_available", &cpu::isas_available, "Those of them that this processor runs, newest last.");
  m.def("isa", &cpu::isa,
        "The instruction set in use. RuntimeError if FASTRNN_CPU_ISA names one that is not available.");
  m.def("set_isa", &cpu::set_isa, py::arg("name"), "Use another instruction set from now on. For tests.");
  m.def(
      "cells",
      [] {
        py::list all;
        for (int cell = 0; cell < cpu::cell_count(); ++cell) all.append(describe(cpu::info_of(cell)));
        return all;
      },
      "What there is to know of each cell: csrc/cells/cell_info.h says what the fields are.");
  m.def(
      "add_cell", [](const std::string& library) { return describe(cpu::info_of(cpu::add_cell(library))); },
      py::arg("library"),
      "Add the cell of a library that fastrnn.build_cell compiled; the same of it as `cells`. RuntimeError "
      "if the "
      "library is of another build, or another cell has the name.");
  m.attr("stamp") = FASTRNN_STAMP;
  m.attr("isa_flags") = FASTRNN_ISA_FLAGS;
  m.def("rnn", call_of("fastrnn::rnn", static_cast<ops::RnnFunction*>(nullptr)),
        "torch.ops.fastrnn.rnn, all arguments given.");
  m.def("cell", call_of("fastrnn::cell", static_cast<ops::CellFunction*>(nullptr)),
        "torch.ops.fastrnn.cell.");
  m.def("frozen_rnn", call_of("fastrnn::frozen_rnn", static_cast<ops::FrozenRnnFunction*>(nullptr)),
        "torch.ops.fastrnn.frozen_rnn, all arguments given.");
  m.def("frozen_cell", call_of("fastrnn::frozen_cell", static_cast<ops::FrozenCellFunction*>(nullptr)),
        "torch.ops.fastrnn.frozen_cell.");
  py::class_<FrozenCall>(m, "FrozenCall", "Calls of frozen_rnn or frozen_cell with the same options.")
      .def(py::init([](const std::string& cell, at::ScalarType dtype, const std::string& weights,
                       int64_t input_size, int64_t hidden_size, int64_t proj_size, int64_t num_layers,
                       bool bidirectional, bool batch_first, const std::vector<double>& zoneout,
                       bool is_step) {
        return FrozenCall{cell,       dtype,         weights,     input_size, hidden_size, proj_size,
                          num_layers, bidirectional, batch_first, is_step,    zoneout};
      }))
      .def("__call__",
           torch::wrap_pybind_function([](const FrozenCall& self, py::object input, py::object hx,
                                          py::dict buffers) { return self.call(input, hx, buffers); }));
  m.def(
      "pack_frozen",
      [](const std::vector<at::Tensor>& weights, const std::vector<at::Tensor>& scales,
         const std::string& cell, at::ScalarType dtype,
         const std::string& kind) { return ops::pack_frozen(weights, scales, cell, dtype, kind); },
      py::arg("weights"), py::arg("scales"), py::arg("cell"), py::arg("dtype"), py::arg("kind"),
      "The parameters of one direction of a layer as one tensor of bytes: csrc/torch/frozen.h.");
  m.def("pack_frozen_matrix", &ops::pack_frozen_matrix, py::arg("matrix"), py::arg("scales"),
        py::arg("dtype"), py::arg("kind"), "The same of a matrix, for torch.ops.fastrnn.frozen_product.");
  m.def("check_storage", &ops::check_storage, py::arg("tensor"), py::arg("name"), py::arg("suffix") = "",
        "RuntimeError if the storage of the tensor is too small for it.");
  m.def(
      "cpu_plan", &cpu_plan, py::kw_only(), py::arg("cell"), py::arg("dtype"), py::arg("T"), py::arg("B"),
      py::arg("I"), py::arg("H"), py::arg("P"), py::arg("D") = 1, py::arg("threads"),
      "How the CPU's threads share a layer, forward and backward: csrc/cpu/plan.h says what the fields are.");
  m.def(
      "core_round_trip", &cpu::core_round_trip,
      "Nanoseconds that a cache line takes between two cores of the team and back; 2^63 - 1: no second one.");
  m.def("plan", &plan, py::kw_only(), py::arg("cell"), py::arg("math"), py::arg("backward") = false,
        py::arg("projected") = false, py::arg("noisy") = false, py::arg("T"), py::arg("B"), py::arg("H"),
        py::arg("D") = 1, py::arg("sms"), py::arg("capability"), py::arg("shared_bytes"), py::arg("clusters"),
        py::arg("kind") = py::none(), py::arg("fitting") = std::set<std::string>{"grid", "cluster"},
        "How a GPU would compute a recurrence, if it can hold the blocks of the kinds that are `fitting`: "
        "csrc/cuda/plan.h says what the fields are.");
#ifdef FASTRNN_CUDA
  m.def("plan_here", &plan_here, py::kw_only(), py::arg("cell"), py::arg("math"), py::arg("backward") = false,
        py::arg("projected") = false, py::arg("noisy") = false, py::arg("T"), py::arg("B"), py::arg("H"),
        py::arg("D") = 1, "How the current GPU computes a recurrence. The GPU is asked what fits.");
  m.def("device", &device, "What a plan depends on, of the current GPU: csrc/cuda/plan.h says what.");
#endif
  m.def(
      "forced_cuda_plan",
      [] {
        const auto kind = cuda::forced_kind();
        return kind ? std::optional<std::string>(cuda::name_of(*kind)) : std::nullopt;
      },
      "The kind of plan that FASTRNN_CUDA_PLAN names, or None. RuntimeError for a name that is no kind.");
  m.def("longest_cuda_wait", &cuda::longest_wait,
        "Nanoseconds that a block waits for another, by FASTRNN_CUDA_WAIT_SECONDS; 0: for ever.");
}
