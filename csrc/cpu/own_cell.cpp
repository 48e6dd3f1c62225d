// A cell of a program, from its own header. fastrnn.build_cell compiles this file once for each instruction set of the
// machine, with FASTRNN_ISA its name, and once without. FASTRNN_HEADER is the header, FASTRNN_STRUCT the cell in it.

#include FASTRNN_HEADER

#ifdef FASTRNN_ISA

#include "cpu/cell_functions.h"
#include "cpu/cell_table.h"

namespace fastrnn::cpu::FASTRNN_ISA {

using OwnCell = cells::FASTRNN_STRUCT;
extern const FunctionsOfCell own_cell_functions;
constexpr FunctionsOfCell own_cell_functions = {
    kCellFunctions<OwnCell, float>, kCellFunctions<OwnCell, double>, kCellFunctions<OwnCell, bf16>};

}  // namespace fastrnn::cpu::FASTRNN_ISA

#else

#include "cpu/cell_table.h"

namespace fastrnn::cpu {

static_assert(cells::check_cell<cells::FASTRNN_STRUCT>());

#define FASTRNN_DECLARE(isa)                                             \
  namespace isa {                                                        \
  extern const FunctionsOfCell own_cell_functions __attribute__((weak)); \
  }
FASTRNN_FOR_EACH_ISA(FASTRNN_DECLARE)

}  // namespace fastrnn::cpu

#define FASTRNN_FUNCTIONS(isa) &fastrnn::cpu::isa::own_cell_functions,
extern "C" __attribute__((visibility("default")))
const fastrnn::cpu::OwnCell fastrnn_own_cell = {{&fastrnn::cells::FASTRNN_STRUCT::info,
                                                 &fastrnn::kValueFunctions<fastrnn::cells::FASTRNN_STRUCT>,
                                                 {FASTRNN_FOR_EACH_ISA(FASTRNN_FUNCTIONS)}},
                                                FASTRNN_STAMP,
                                                FASTRNN_CONTENT};

#endif
