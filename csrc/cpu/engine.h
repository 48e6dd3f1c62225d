#pragma once

#include <cstddef>
#include <tuple>

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

// The forward and backward of a layer, whatever its cell, for one instruction set. Null: the instruction set has
// nothing of its own for T, and the code of the one before it is used.
template <class T>
struct Engine {
  void (*forward)(const EngineCell<T>&, const ForwardParams<T>&, const Resources&);
  void (*backward)(const EngineCell<T>&, const BackwardParams<T>&, const Resources&);
  LayerPlan (*plan)(const cells::CellInfo&, const LayerSizes&, Pass,
                    int threads);  // how threads would share it
};
using Engines = std::tuple<Engine<float>, Engine<double>, Engine<bf16>>;

}  // namespace fastrnn::cpu
