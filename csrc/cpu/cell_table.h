#pragma once

// The cells of this process: those of cells/registry.h, in their order, and then those that programs add
// (fastrnn.build_cell), each compiled into a library of its own.

#include <string>
#include <tuple>

#include "core/value_functions.h"
#include "cpu/cell_block.h"
#include "cpu/isas.h"

namespace fastrnn::cpu {

// A cell for one instruction set.
using FunctionsOfCell = std::tuple<CellFunctions<float>, CellFunctions<double>, CellFunctions<bf16>>;

// A cell; plain data, which a library gives as it is.
struct CellRow {
  const cells::CellInfo* info;
  const ValueFunctions* values;
  const FunctionsOfCell* functions[kIsas];  // by instruction set; null: not compiled for it
};

// What such a library defines: its row; the stamp of the headers that it was compiled with; what its header holds.
struct OwnCell {
  CellRow row;
  const char* stamp;
  const char* content;
};
constexpr const char* kOwnCell = "fastrnn_own_cell";  // its name

int cell_count();
// cell: less than cell_count()
const CellRow& row_of(int cell);
inline const cells::CellInfo& info_of(int cell) { return *row_of(cell).info; }
// Adds the cell of a library, and returns its index. Of one that is there with the same content, that. std::runtime_error
// if there is another cell of this name, and for what is no library of this build.
int add_cell(const std::string& library);

}  // namespace fastrnn::cpu
