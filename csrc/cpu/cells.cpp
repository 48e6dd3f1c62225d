// The functions of every cell for one instruction set; compiled as engine.cpp.

#include "cells/registry.h"
#include "cpu/cell_functions.h"
#include "cpu/cell_table.h"

namespace fastrnn::cpu::FASTRNN_ISA {

#define FASTRNN_CELL(Cell)                                                  \
  {kCellFunctions<cells::Cell, float>, kCellFunctions<cells::Cell, double>, \
   kCellFunctions<cells::Cell, bf16>},
extern const FunctionsOfCell cell_functions[];
constexpr FunctionsOfCell cell_functions[] = {FASTRNN_FOR_EACH_CELL(FASTRNN_CELL)};
#undef FASTRNN_CELL

}  // namespace fastrnn::cpu::FASTRNN_ISA
