#include "cpu/cell_table.h"

#include <dlfcn.h>

#include <array>
#include <atomic>
#include <cstring>
#include <mutex>
#include <stdexcept>

#include "cells/registry.h"

namespace fastrnn::cpu {

// What cells.cpp defines for an instruction set.
#define FASTRNN_DECLARE(isa)                     \
  namespace isa {                                \
  extern const FunctionsOfCell cell_functions[]; \
  }
FASTRNN_FOR_EACH_ISA(FASTRNN_DECLARE)
#undef FASTRNN_DECLARE

namespace {

constexpr int kMostCells = 1024;

// Rows are only added, and stay where they are: who reads one takes no lock.
struct Table {
  std::array<CellRow, kMostCells> rows;
  std::array<std::string, kMostCells> contents;  // of those that were added
  std::atomic<int> count{0};
  std::mutex adding;

  Table() {
#define FASTRNN_VALUES(Cell) &kValueFunctions<cells::Cell>,
    constexpr const ValueFunctions* values[] = {FASTRNN_FOR_EACH_CELL(FASTRNN_VALUES)};
#undef FASTRNN_VALUES
#define FASTRNN_FUNCTIONS(isa) &isa::cell_functions[i],
    for (int i = 0; i < cells::kCellCount; ++i) {
      rows[i] = {cells::kCells[i], values[i], {FASTRNN_FOR_EACH_ISA(FASTRNN_FUNCTIONS)}};
    }
#undef FASTRNN_FUNCTIONS
    count = cells::kCellCount;
  }
};

Table& table() {
  static Table one;
  return one;
}

}  // namespace

int cell_count() { return table().count.load(std::memory_order_acquire); }
const CellRow& row_of(int cell) { return table().rows[cell]; }

int add_cell(const std::string& library) {
  const auto refuse = [&](const std::string& why) { throw std::runtime_error(library + ": " + why); };
  void* const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) throw std::runtime_error(dlerror());
  const auto* const own = static_cast<const OwnCell*>(dlsym(handle, kOwnCell));
  if (own == nullptr) refuse("expected a library that fastrnn.build_cell made");
  if (std::strcmp(own->stamp, FASTRNN_STAMP) != 0) refuse("was compiled with headers of another fastrnn");
  const std::string name = own->row.info->name;
  Table& all = table();
  const std::lock_guard<std::mutex> lock(all.adding);
  const int count = all.count;
  for (int i = 0; i < count; ++i) {
    if (name != all.rows[i].info->name) continue;
    if (i >= cells::kCellCount && all.contents[i] == own->content) return i;
    refuse(
        "expected the name of a cell that is not there yet, got '" + name +
        (i < cells::kCellCount ? "', which is fastrnn's" : "', which this process has with other content"));
  }
  if (count == kMostCells) refuse("expected at most " + std::to_string(kMostCells) + " cells");
  all.rows[count] = own->row;
  all.contents[count] = own->content;
  all.count.store(count + 1, std::memory_order_release);
  return count;
}

}  // namespace fastrnn::cpu
