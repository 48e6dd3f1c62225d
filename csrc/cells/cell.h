#pragma once

#include "cells/cell_info.h"
#include "cells/inline.h"

// A cell is a CellInfo, what there is to know of it, and a struct of three functions, each templated on the
// activations M (sigmoid, tanh, relu, exp, log_sigmoid, if_positive, zero_unless_positive) and the value type V, which
// has + - * / with V and with numbers (a float, a vector of them, a tensor):
//   activate(a, u, s, c), or activate(gx, gh, u, s, c) where has_split_gate<Cell>
//   output(s, u, h_prev, c, h)
//     The forward in two parts, since the second begins with an activation that waits for those of the first.
//     gx, gh [gates]: the gates' shares from the input, W_ih x + b_ih, and the hidden state, W_hh h + b_hh.
//     a [gates]: their sum.
//     u [unit_vectors]: the unit's numbers of the vectors that the cell has.
//     s [saved, at least one] takes what the second part and the backward need; c [cell_states] are the states
//     beside h, in and out.
//   backward(s, u, h_prev, h, c_prev, c, dh, dc, dgx, dgh, du, dh_prev)
//     dh, dc: gradients of the step's h and c. Writes dgx, dgh where has_split_gate<Cell>, and du, what the step
//     adds to the gradients of the unit vectors; turns dc into the gradient of c_prev; dh_prev comes in as zero
//     and takes what reaches h_prev past W_hh, where the cell uses it element by element.
//
// A cell with late gates has its functions in other parts, without u, c and du; and their backward in two:
//   activate(a, h_prev, s, v)    a: of the gates that are not late; v: what the late ones' rows of W_hh multiply
//   output(a, h_prev, s, h)      a: of the late gates
//   backward_output(s, h_prev, dh, dgx, dh_prev)           writes dh_prev, and dgx of the late gates and of others
//   backward_activate(s, h_prev, dv, dgx, dh_prev, v)      dv: the gradient of v; writes what is left, adds to dh_prev
//
// A cell that is normalised has the functions of another one, Inner. If that has a state c, its backward consists of
// backward_output and backward_gates (see lstm.h).

namespace fastrnn::cells {

// Is there a gate whose share from the hidden state is not just added to that from the input?
template <class Cell>
constexpr bool has_split_gate = Cell::whole_gates < Cell::gates;

// The first part of a cell's forward, of both shares of each gate.
template <class Cell, class M, class V>
FASTRNN_INLINE void activate(const V* gx, const V* gh, const V* u, V* s, V* c) {
  if constexpr (has_split_gate<Cell>) {
    Cell::template activate<M>(gx, gh, u, s, c);
  } else {
    V a[Cell::gates];
    for (int g = 0; g < Cell::gates; ++g) a[g] = gx[g] + gh[g];
    Cell::template activate<M>(a, u, s, c);
  }
}
// Both parts.
template <class Cell, class M, class V>
FASTRNN_INLINE void forward(const V* gx, const V* gh, const V* u, const V& h_prev, V* s, V* c, V& h) {
  activate<Cell, M>(gx, gh, u, s, c);
  Cell::template output<M>(s, u, h_prev, c, h);
}

// Whether the number of a layer's parameters tells which of them it has.
constexpr bool count_tells_parameters(const CellInfo& cell) {
  const auto is_form = [&](int form) {
    return (!(form & 1) || cell.can(Needs::bias)) && (!(form & 2) || cell.can(Needs::projection));
  };
  for (int form = 0; form < 4; ++form) {
    for (int other = 0; other < form; ++other) {
      if (is_form(form) && is_form(other) &&
          cell.count_parameters(form & 1, form & 2) == cell.count_parameters(other & 1, other & 2)) {
        return false;
      }
    }
  }
  return true;
}

// What the kernels rely on.
template <class Cell>
constexpr bool check_cell() {
  static_assert(count_tells_parameters(Cell::info),
                "each form of a layer needs another number of parameters");
  static_assert(0 <= Cell::whole_gates && Cell::whole_gates <= Cell::gates && Cell::saved >= 0);
  static_assert(!(Cell::projects && Cell::reads_h), "with a projection h_prev has other units than the cell");
  static_assert(Cell::late_gates == 0 || (Cell::cell_states == 0 && Cell::unit_vectors == 0),
                "a cell with late gates has no states beside h, and no unit vectors");
  static_assert(!Cell::normalised || Cell::cell_states <= 1,
                "a cell that is normalised has one state beside h");
  return true;
}

}  // namespace fastrnn::cells
