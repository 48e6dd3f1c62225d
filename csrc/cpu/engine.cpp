// The forward and backward of a layer for one instruction set. CMake compiles this file once for each, with
// FASTRNN_ISA its name.

#include "cpu/engine.h"

#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/layer_plan.h"
#include "cpu/product.h"
#include "cpu/stack.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class T>
constexpr Engine<T> engine_of() {
  if constexpr (kHasOwnCode<T>)
    return {forward<T>, backward<T>, plan_layer<T>, multiply_rows<T, T>, forward_stack<T, T>};
  return {};
}

template <class W>
constexpr FrozenEngine<W> frozen_engine_of() {
  if constexpr (kHasOwnCode<W>) return {forward<float, W>, multiply_rows<float, W>, forward_stack<float, W>};
  return {};
}

// Data, not code: choosing an instruction set must not run it.
extern const Engines engines;
constexpr Engines engines = {engine_of<float>(),
                             engine_of<double>(),
                             engine_of<bf16>(),
                             frozen_engine_of<bf16_weight>(),
                             frozen_engine_of<int8_weight>(),
                             frozen_engine_of<int8_wide_weight>()};

}  // namespace fastrnn::cpu::FASTRNN_ISA
