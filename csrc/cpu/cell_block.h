#pragma once

// What the engine, the forward and backward of a layer, gives the functions of a cell. Plain data, the same for all
// instruction sets.

#include <cstdint>

#include "core/params.h"

namespace fastrnn::cpu {

// Rows of numbers: where the first stands, and how far it is to the next.
template <class S>
struct RowsAt {
  S* at = nullptr;
  int64_t stride = 0;
};

// Some sequences in a step, and some neighbouring units of them: a panel, whose last vector may be partly filled. All
// pointers are to the first sequence and the first unit.
template <class T>
struct Block {
  int64_t rows = 0, units = 0;
  const T* unit[kMostUnitVectors] = {};  // the cell's vectors of a unit
};

// The forward. Where whole vectors are stored, rows have room for them.
template <class T>
struct ForwardBlock : Block<T> {
  // Columns of the gates' shares from the input and the hidden state, gate after gate, `gate` apart. Without a split
  // gate only their sum is wanted, and that is gh.
  RowsAt<const Real<T>> gx, gh;
  int64_t gate = 0;
  const Real<T>* bias_h = nullptr;  // as gh: what is still to be added to the split gates
  RowsAt<const Real<T>> h_prev;     // null where h has other units than the cell
  RowsAt<T> out;                    // h, or what the projection takes, or null; whole vectors
  RowsAt<Real<T>> h_real;           // h before it is rounded, or null; whole vectors
  RowsAt<T> y, y_copy;              // h again, or null
  RowsAt<Real<T>> c;                // the states beside h, in and out, `c_next` apart; whole vectors
  int64_t c_next = 0;
  // What the backward needs, or null; numbers of a unit are `saved_next` apart.
  RowsAt<Real<T>> saved_s, saved_c;
  int64_t saved_next = 0;
  // What the parts of a cell's forward share, numbers of a unit `c_next` apart: of one with late gates, whose first
  // part makes v of the other gates, and of one that is normalised.
  RowsAt<Real<T>> kept;
  RowsAt<T> v;
  // The columns of whole rows, of a cell that is normalised, come in panels of so many units.
  int64_t panel_units = 0;
};

// The backward.
template <class T>
struct BackwardBlock : Block<T> {
  // dh is the sum of up to three: `product` for the first `multiplied` sequences, `dh` and `dy`. `dh` takes what
  // reaches the step before past the product; whole vectors. Null: none.
  RowsAt<const Real<T>> product;
  int64_t multiplied = 0;
  RowsAt<Real<T>> dh;
  RowsAt<const T> dy;
  RowsAt<const Real<T>> s, c;  // what the forward saved, `saved_next` apart
  int64_t saved_next = 0;
  RowsAt<const Real<T>> c_prev;          // the same of the step before, or null: then
  RowsAt<const T> c_0[kMostCellStates];  // the initial states, null for zeros
  RowsAt<const T> h_prev, h;             // null where the cell reads none
  RowsAt<const Real<T>> h_computed;      // in place of h: before zoneout
  RowsAt<Real<T>> dc;  // the gradients of the states beside h, in and out, `c_next` apart; whole vectors
  int64_t c_next = 0;
  // Results: gradients of the gates' shares, `gate` apart, dgh null where it is dgx; of the vectors of a unit, `gate`
  // apart; and what is multiplied after the cell's part: its output, or v. Null: not wanted.
  RowsAt<T> dgx, dgh, du, m;
  int64_t gate = 0;
  RowsAt<Real<T>> scratch;  // [gates, units], `c_next` apart, for a cell that is normalised
};

// Of a cell with late gates `forward` is the second part and `backward` its backward; the product of the late gates is
// between both parts, and `product` in forward_early's backward is the gradient of v.
template <class T>
struct CellFunctions {
  void (*forward)(const ForwardBlock<T>&);
  void (*backward)(const BackwardBlock<T>&);
  void (*forward_early)(const ForwardBlock<T>&) = nullptr;
  void (*backward_early)(const BackwardBlock<T>&) = nullptr;
};

// A cell, as the engine takes it.
template <class T>
struct EngineCell {
  const cells::CellInfo& info;
  const CellFunctions<T>& functions;
};

}  // namespace fastrnn::cpu
