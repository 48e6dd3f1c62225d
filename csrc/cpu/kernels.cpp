// The kernels of every cell for one instruction set. CMake compiles this file once for each, with FASTRNN_ISA
// its name.

#include "cpu/backward.h"
#include "cpu/dispatch.h"
#include "cpu/forward.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class Cell, class T>
constexpr Kernels<T> kKernels = {forward<Cell, T>, backward<Cell, T>};

#define FASTRNN_CELL(Cell) \
  {kKernels<cells::Cell, float>, kKernels<cells::Cell, double>, kKernels<cells::Cell, bf16>},
// Data, not code: choosing an instruction set must not run it.
extern const CellKernels kernels[];
constexpr CellKernels kernels[] = {FASTRNN_FOR_EACH_CELL(FASTRNN_CELL)};
#undef FASTRNN_CELL

}  // namespace fastrnn::cpu::FASTRNN_ISA
