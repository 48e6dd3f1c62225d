#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

// A cell is a struct of numbers and three functions, each templated on the activations M and the value type V
// (a float, a vector of them, a tensor):
//   activate(a, s, c), or activate(gx, gh, s, c) where has_split_gate<Cell>
//   output(s, h_prev, c, h)
//     The forward in two parts, since the second begins with an activation that waits for those of the first.
//     gx, gh [gates]: the gates' shares from the input, W_ih x + b_ih, and the hidden state, W_hh h + b_hh.
//     a [gates]: their sum.
//     s [saved, at least one] takes what the second part and the backward need; c is the cell state, in and
//     out.
//   backward(s, h_prev, h, c_prev, c, dh, dc, dgx, dgh, dh_prev)
//     dh, dc: gradients of the step's h and c. Writes dgx, and dgh where has_split_gate<Cell>;
//     turns dc into the gradient of c_prev; dh_prev comes in as zero and takes what reaches h_prev past W_hh,
//     where the cell uses it element by element.
//
// Every cell stands in this list once. The kernels, their dispatch and the operators are made from it.
#define FASTRNN_FOR_EACH_CELL(X) \
  X(Lstm)                        \
  X(Gru)                         \
  X(RnnTanh)                     \
  X(RnnRelu)

namespace fastrnn::cells {

// Is there a gate whose share from the hidden state is not just added to that from the input?
template <class Cell>
constexpr bool has_split_gate = Cell::whole_gates < Cell::gates;

// Both parts of a cell's forward.
template <class Cell, class M, class V>
FASTRNN_INLINE void forward(const V* gx, const V* gh, const V& h_prev, V* s, V& c, V& h) {
  if constexpr (has_split_gate<Cell>) {
    Cell::template activate<M>(gx, gh, s, c);
  } else {
    V a[Cell::gates];
    for (int g = 0; g < Cell::gates; ++g) a[g] = gx[g] + gh[g];
    Cell::template activate<M>(a, s, c);
  }
  Cell::template output<M>(s, h_prev, c, h);
}

}  // namespace fastrnn::cells
