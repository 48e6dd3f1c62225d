// The kernels of every cell for one instruction set. CMake compiles this file once for each, with FASTRNN_ISA
// its name.

#include "cpu/backward.h"
#include "cpu/dispatch.h"
#include "cpu/forward.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class Cell, class T>
constexpr Kernels<T> kernels_of = {forward<Cell, T>, backward<Cell, T>};

template <class Cell>
constexpr CellKernels kernels() {
  return {Cell::name,    Cell::gates,
          Cell::saved,   Cell::has_c,
          Cell::reads_h, {kernels_of<Cell, float>, kernels_of<Cell, double>, kernels_of<Cell, bf16>}};
}

#define FASTRNN_CELL(Cell) kernels<fastrnn::cells::Cell>(),
// Data, not code: choosing an instruction set must not run it.
extern const CellTable cells;
constexpr CellKernels kCells[] = {FASTRNN_FOR_EACH_CELL(FASTRNN_CELL)};
constexpr CellTable cells{kCells, kCells + sizeof(kCells) / sizeof(kCells[0])};
#undef FASTRNN_CELL

}  // namespace fastrnn::cpu::FASTRNN_ISA
