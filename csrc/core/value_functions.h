#pragma once

#include "cells/cell.h"
#include "core/value.h"

namespace fastrnn {

// The functions of a cell of values, as cells/cell.h says what they do; null where the cell has none of the kind. Of a
// cell that is normalised, they are those of Inner.
struct ValueFunctions {
  void (*activate)(const Value* gx, const Value* gh, const Value* u, Value* s, Value* c) = nullptr;
  void (*output)(Value* s, const Value* u, const Value& h_prev, const Value* c, Value& h) = nullptr;
  void (*backward)(const Value* s, const Value* u, const Value& h_prev, const Value& h, const Value* c_prev,
                   const Value* c, const Value& dh, Value* dc, Value* dgx, Value* dgh, Value* du,
                   Value& dh_prev) = nullptr;
  // With late gates, in place of these three.
  void (*early_activate)(const Value* a, const Value& h_prev, Value* s, Value& v) = nullptr;
  void (*late_output)(const Value* a, const Value& h_prev, Value* s, Value& h) = nullptr;
  void (*late_backward)(const Value* s, const Value& h_prev, const Value& dh, Value* dgx,
                        Value& dh_prev) = nullptr;
  void (*early_backward)(const Value* s, const Value& h_prev, const Value& dv, Value* dgx, Value& dh_prev,
                         Value& v) = nullptr;
  // Normalised with a state beside h, in place of backward.
  void (*backward_output)(const Value* s, const Value& c, const Value& dh, Value* dgx, Value& dc) = nullptr;
  void (*backward_gates)(const Value* s, const Value& c_prev, Value& dc, Value* dgx) = nullptr;
};

template <class Cell>
constexpr ValueFunctions value_functions_of() {
  using M = ValueMath;
  ValueFunctions result;
  if constexpr (Cell::late_gates > 0) {
    result.early_activate = Cell::template activate<M, Value>;
    result.late_output = Cell::template output<M, Value>;
    result.late_backward = Cell::template backward_output<M, Value>;
    result.early_backward = Cell::template backward_activate<M, Value>;
  } else if constexpr (Cell::normalised) {
    result = value_functions_of<typename Cell::Inner>();
    if constexpr (Cell::cell_states > 0) {
      result.backward_output = Cell::Inner::template backward_output<M, Value>;
      result.backward_gates = Cell::Inner::template backward_gates<M, Value>;
    }
  } else {
    result.activate = cells::activate<Cell, M, Value>;
    result.output = Cell::template output<M, Value>;
    result.backward = Cell::template backward<M, Value>;
  }
  return result;
}
template <class Cell>
inline constexpr ValueFunctions kValueFunctions = value_functions_of<Cell>();

}  // namespace fastrnn
