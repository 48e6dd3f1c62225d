#pragma once

#include <cstddef>
#include <string>
#include <tuple>
#include <vector>

#include "core/params.h"
#include "cpu/cell_block.h"
#include "cpu/plan.h"

namespace fastrnn::cpu {

// What a call may use.
struct Resources {
  int threads;
  // Of scratch memory, aligned to 64 bytes; throws where there is none.
  void* (*allocate)(size_t bytes);
  void (*release)(void* memory);
};

// The forward and backward of a layer, whatever its cell, for one instruction set.
template <class T>
struct Engine {
  void (*forward)(const EngineCell<T>&, const ForwardParams<T>&, const Resources&);
  void (*backward)(const EngineCell<T>&, const BackwardParams<T>&, const Resources&);
  LayerPlan (*plan)(const cells::CellInfo&, const LayerSizes&, Pass,
                    int threads);  // how threads would share it
};
using Engines = std::tuple<Engine<float>, Engine<double>, Engine<bf16>>;
// A cell for one instruction set.
using FunctionsOfCell = std::tuple<CellFunctions<float>, CellFunctions<double>, CellFunctions<bf16>>;

// The kernels of a cell.
template <class T>
struct Kernels {
  const Engine<T>& engine;
  const EngineCell<T> cell;

  void forward(const ForwardParams<T>& p, const Resources& resources) const {
    engine.forward(cell, p, resources);
  }
  void backward(const BackwardParams<T>& p, const Resources& resources) const {
    engine.backward(cell, p, resources);
  }
  LayerPlan plan(const LayerSizes& sizes, Pass pass, int threads) const {
    return engine.plan(cell.info, sizes, pass, threads);
  }
};

// The instruction sets this build has kernels for, and those of them that this processor runs; best last.
std::vector<std::string> isas_built();
std::vector<std::string> isas_available();
// The one in use: the best available, or what FASTRNN_CPU_ISA or set_isa names. Both throw std::runtime_error
// for a name that is not available.
std::string isa();
void set_isa(const std::string& name);

// cell: its index in cells/registry.h, which the engine does not know
const cells::CellInfo& info_of(int cell);
// Of the instruction set in use.
const Engines& engines();
const FunctionsOfCell& functions_of_cell(int cell);
template <class T>
Kernels<T> kernels_of(int cell) {
  return {std::get<Engine<T>>(engines()),
          {info_of(cell), std::get<CellFunctions<T>>(functions_of_cell(cell))}};
}

}  // namespace fastrnn::cpu
