#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "core/params.h"

namespace fastrnn::cpu {

template <class T>
struct Kernels {
  void (*forward)(const ForwardParams<T>&);
  void (*backward)(const BackwardParams<T>&);
};

// One cell as it is registered: the numbers that callers need, and its kernels for one instruction set.
struct CellKernels {
  const char* name;
  int gates, saved;
  bool has_c, reads_h;
  std::tuple<Kernels<float>, Kernels<double>, Kernels<bf16>> kernels;

  template <class T>
  const Kernels<T>& of() const {
    return std::get<Kernels<T>>(kernels);
  }
};

struct CellTable {
  const CellKernels *first, *last;
  const CellKernels* begin() const { return first; }
  const CellKernels* end() const { return last; }
};

// The instruction sets this build has kernels for, and those of them that this processor runs; best last.
std::vector<std::string> isas_built();
std::vector<std::string> isas_available();
// The one in use: the best available, or what FASTRNN_CPU_ISA or set_isa names. Both throw std::runtime_error
// for a name that is not available.
std::string isa();
void set_isa(const std::string& name);

// The cells of the instruction set in use.
const CellTable& cells();
// Throws std::invalid_argument for a name that is not registered.
const CellKernels& find_cell(const std::string& name);

}  // namespace fastrnn::cpu
