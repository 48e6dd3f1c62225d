// fastrnn._C: what was built and what is in use. Importing it registers the operators.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <cstdlib>

#include "cpu/dispatch.h"

namespace py = pybind11;
namespace cpu = fastrnn::cpu;

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
  m.def("isas_available", &cpu::isas_available, "Those of them that this processor runs, best last.");
  m.def("isa", &cpu::isa,
        "The instruction set in use. RuntimeError if FASTRNN_CPU_ISA names one that is not available.");
  m.def("set_isa", &cpu::set_isa, py::arg("name"), "Use another instruction set from now on. For tests.");
  m.def(
      "cells",
      [] {
        std::vector<std::string> names;
        for (const cpu::CellKernels& cell : cpu::cells()) names.push_back(cell.name);
        return names;
      },
      "Names of the registered cells.");
}
