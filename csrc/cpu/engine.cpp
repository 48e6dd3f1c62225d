// The forward and backward of a layer for one instruction set. CMake compiles this file once for each, with
// FASTRNN_ISA its name.

#include "cpu/engine.h"

#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/layer_plan.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class T>
constexpr Engine<T> engine_of() {
  if constexpr (kHasOwnCode<T>) return {forward<T>, backward<T>, plan_layer<T>};
  return {};
}

// Data, not code: choosing an instruction set must not run it.
extern const Engines engines;
constexpr Engines engines = {engine_of<float>(), engine_of<double>(), engine_of<bf16>()};

}  // namespace fastrnn::cpu::FASTRNN_ISA
