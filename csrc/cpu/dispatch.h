#pragma once

#include <cstddef>
#include <string>
#include <tuple>
#include <vector>

#include "core/params.h"

namespace fastrnn::cpu {

// What a call may use.
struct Resources {
  int threads;
  // Of scratch memory, aligned to 64 bytes; throws where there is none.
  void* (*allocate)(size_t bytes);
  void (*release)(void* memory);
};

template <class T>
struct Kernels {
  void (*forward)(const ForwardParams<T>&, const Resources&);
  void (*backward)(const BackwardParams<T>&, const Resources&);
};
// The kernels of one cell for one instruction set.
using CellKernels = std::tuple<Kernels<float>, Kernels<double>, Kernels<bf16>>;

// The instruction sets this build has kernels for, and those of them that this processor runs; best last.
std::vector<std::string> isas_built();
std::vector<std::string> isas_available();
// The one in use: the best available, or what FASTRNN_CPU_ISA or set_isa names. Both throw std::runtime_error
// for a name that is not available.
std::string isa();
void set_isa(const std::string& name);

// The kernels of a cell for the instruction set in use. cell: its index in cells/registry.h
const CellKernels& cell_kernels(int cell);
template <class T>
const Kernels<T>& kernels_of(int cell) {
  return std::get<Kernels<T>>(cell_kernels(cell));
}

}  // namespace fastrnn::cpu
