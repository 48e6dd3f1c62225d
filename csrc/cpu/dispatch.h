#pragma once

#include <string>
#include <vector>

#include "core/params.h"

namespace fastrnn::cpu {

// One cell as it is registered: the numbers that callers need, and its kernels for one instruction set.
struct CellKernels {
  const char* name;
  int gates, saved;
  bool has_c;
  void (*forward_float)(const ForwardParams<float>&);
  void (*forward_double)(const ForwardParams<double>&);
  void (*backward_float)(const BackwardParams<float>&);
  void (*backward_double)(const BackwardParams<double>&);
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
