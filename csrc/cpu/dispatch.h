#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "core/params.h"
#include "cpu/cell_table.h"
#include "cpu/engine.h"
#include "cpu/plan.h"

namespace fastrnn::cpu {

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

Isa isa_in_use();
const Engines& engines(Isa isa);
const FunctionsOfCell& functions_of_cell(int cell, Isa isa);
// The instruction set in use, or the last one before it that has an engine of this type.
template <class E>
Isa isa_with() {
  Isa isa = isa_in_use();
  while (!std::get<E>(engines(isa)).forward) isa = static_cast<Isa>(static_cast<int>(isa) - 1);
  return isa;
}
template <class T>
EngineCell<T> cell_of(int cell, Isa isa) {
  return {info_of(cell), std::get<CellFunctions<T>>(functions_of_cell(cell, isa))};
}
// cell: its index in the table of cells
template <class T>
Kernels<T> kernels_of(int cell) {
  const Isa isa = isa_with<Engine<T>>();
  return {std::get<Engine<T>>(engines(isa)), cell_of<T>(cell, isa)};
}
// The engine of a frozen layer: T what it computes with, W what its weights are. Its forward takes a cell of T's
// engine, which may be of another instruction set, but has vectors of the same length.
template <class T, class W>
const auto& frozen_engine() {
  if constexpr (std::is_same_v<T, W>) {
    return std::get<Engine<T>>(engines(isa_with<Engine<T>>()));
  } else {
    return std::get<FrozenEngine<W>>(engines(isa_with<FrozenEngine<W>>()));
  }
}

}  // namespace fastrnn::cpu
