// The kernels of every cell for one instruction set. CMake compiles this file once for each, with FASTRNN_ISA
// its name.

#include "cpu/backward.h"
#include "cpu/dispatch.h"
#include "cpu/forward.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class Cell>
constexpr CellKernels kernels() {
  return {Cell::name,           Cell::gates,           Cell::saved,           Cell::has_c,
          forward<Cell, float>, forward<Cell, double>, backward<Cell, float>, backward<Cell, double>};
}

#define FASTRNN_CELL(Cell) kernels<fastrnn::cells::Cell>(),
// Data, not code: choosing an instruction set must not run it.
extern const CellTable cells;
constexpr CellKernels kCells[] = {FASTRNN_FOR_EACH_CELL(FASTRNN_CELL)};
constexpr CellTable cells{kCells, kCells + sizeof(kCells) / sizeof(kCells[0])};
#undef FASTRNN_CELL

}  // namespace fastrnn::cpu::FASTRNN_ISA
