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

// y [R, N] = x [R, K] times a frozen matrix of N units with a gate each (cpu/frozen.h).
template <class T>
struct ProductParams {
  int64_t R, K, N;
  const T* x;
  const char* packed;
  T* y;
};

// The forward and backward of a layer, whatever its cell, for one instruction set. Null: the instruction set has
// nothing of its own for T, and the code of the one before it is used.
template <class T>
struct Engine {
  void (*forward)(const EngineCell<T>&, const ForwardParams<T>&, const Resources&);
  void (*backward)(const EngineCell<T>&, const BackwardParams<T>&, const Resources&);
  LayerPlan (*plan)(const cells::CellInfo&, const LayerSizes&, Pass,
                    int threads);  // how threads would share it
  void (*multiply)(const ProductParams<T>&, const Resources&);
  // Frozen layers of a stack at once, where that pays; else nothing happens, and the result is false.
  bool (*forward_stack)(const EngineCell<T>&, const ForwardParams<T>*, int count, const Resources&);
};
// The forward of a frozen layer whose weights are not what it computes with, float. Null as in Engine.
template <class W>
struct FrozenEngine {
  void (*forward)(const EngineCell<float>&, const ForwardParams<float>&, const Resources&);
  void (*multiply)(const ProductParams<float>&, const Resources&);
  bool (*forward_stack)(const EngineCell<float>&, const ForwardParams<float>*, int count, const Resources&);
};
using Engines = std::tuple<Engine<float>, Engine<double>, Engine<bf16>, FrozenEngine<bf16_weight>,
                           FrozenEngine<int8_weight>, FrozenEngine<int8_wide_weight>>;

}  // namespace fastrnn::cpu
