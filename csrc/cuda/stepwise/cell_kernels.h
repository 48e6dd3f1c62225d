#pragma once

#include <array>

#include "cells/registry.h"
#include "cuda/activations.h"
#include "cuda/numbers.h"
#include "cuda/recurrence.h"

// The bodies of the kernels between the products. A body is a function object: a queue calls it once for every index
// (i, row, column) of a box, in any order. On the device each thread has some indices; on the host a loop has all of
// them (tests/csrc).

namespace fastrnn::cuda {

// to[i] = from[i], or zero if `from` is null.
template <class From, class To>
struct Assign {
  const From* from;
  To* to;
  int64_t width;

  FASTRNN_INLINE void operator()(int64_t, int64_t row, int64_t column) const {
    const int64_t i = row * width + column;
    to[i] = from_real<To>(from ? to_real(from[i]) : 0);
  }
};

// The rows of a step. Sequence b < n has row first + b * stride_b.
struct StepRows {
  int64_t first, n;
};

// A step of the cell, for (d, b, unit). The hidden state's share gh has been computed.
template <class Cell, class T>
struct CellForward {
  using V = Real<T>;
  StepRows step[2];
  int64_t B, H, R, stride_b;
  int D;
  const V* gx;  // [R, D*GH]
  const V* gh;  // [D, B, GH]
  Weights<T> weights[2];
  T* h;        // [D, B, H], the state, or what the projection takes
  V* h_real;   // [D, B, H], the state before it was rounded, or null
  V* c;        // [C, D, B, H]
  T* y;        // [R, D*H] or null
  V* s;        // [D, R, S*H] or null
  V* saved_c;  // [D, R, C*H] or null

  FASTRNN_INLINE void operator()(int64_t d, int64_t b, int64_t unit) const {
    constexpr int G = Cell::gates, C = Cell::cell_states, U = Cell::unit_vectors;
    if (b >= step[d].n) return;
    const int64_t row = step[d].first + b * stride_b, state = (d * B + b) * H + unit;
    const int64_t c_size = D * B * H;  // of a state
    const Weights<T>& w = weights[d];
    V x_share[G], h_share[G], activations[Cell::saved + 1], u[U + 1], c_state[C + 1], h_out{}, h_prev{};
    for (int k = 0; k < U; ++k) u[k] = to_real(w.unit[k][unit]);
    for (int g = 0; g < G; ++g) {
      const int64_t gate = g * H + unit;
      x_share[g] = gx[(row * D + d) * G * H + gate] + (w.b_ih ? to_real(w.b_ih[gate]) : V(0));
      h_share[g] = gh[(d * B + b) * G * H + gate] + (w.b_hh ? to_real(w.b_hh[gate]) : V(0));
    }
    if constexpr (Cell::reads_h) h_prev = h_real ? h_real[state] : to_real(h[state]);
    for (int k = 0; k < C; ++k) c_state[k] = c[k * c_size + state];
    cells::forward<Cell, Activations>(x_share, h_share, u, h_prev, activations, c_state, h_out);
    h[state] = from_real<T>(h_out);
    if (h_real) h_real[state] = h_out;
    if (y) y[(row * D + d) * H + unit] = from_real<T>(h_out);
    for (int k = 0; k < C; ++k) {
      c[k * c_size + state] = c_state[k];
      if (saved_c) saved_c[((d * R + row) * C + k) * H + unit] = c_state[k];
    }
    if (s) {
      for (int k = 0; k < Cell::saved; ++k) s[((d * R + row) * Cell::saved + k) * H + unit] = activations[k];
    }
  }
};

// Copies the projected state to y's rows of a step, for (d, b, p).
template <class T>
struct StoreOutput {
  StepRows step[2];
  int64_t B, P, stride_b;
  int D;
  const T* h;  // [D, B, P]
  T* y;        // [R, D*P]

  FASTRNN_INLINE void operator()(int64_t d, int64_t b, int64_t p) const {
    if (b >= step[d].n) return;
    y[((step[d].first + b * stride_b) * D + d) * P + p] = h[(d * B + b) * P + p];
  }
};

// With a projection: the whole gradient of a step's h, for (d, b, p): of the state and of y. It leaves zero in dh.
template <class T>
struct TakeGradient {
  StepRows step[2];
  int64_t B, P, stride_b;
  int D;
  Real<T>* dh;  // [D, B, P]
  const T* dy;  // [R, D*P] or null
  T* dh_step;   // [D, B, P]
  T* dh_rows;   // [R, D*P]

  FASTRNN_INLINE void operator()(int64_t d, int64_t b, int64_t p) const {
    if (b >= step[d].n) return;
    const int64_t at = ((step[d].first + b * stride_b) * D + d) * P + p, state = (d * B + b) * P + p;
    const T sum = from_real<T>(dh[state] + (dy ? to_real(dy[at]) : Real<T>(0)));
    dh_step[state] = sum;
    dh_rows[at] = sum;
    dh[state] = 0;
  }
};

// The gate gradients of a step, for (d, b, unit).
template <class Cell, class T>
struct CellBackward {
  using V = Real<T>;
  StepRows step[2], before[2];  // before: the step before in the direction's order; n = 0 if there is none
  int64_t B, H, R, stride_b;
  int D;
  Weights<T> weights[2];
  const V* s;                    // [D, R, S*H]
  const V* saved_c;              // [D, R, C*H]
  const T* y;                    // [R, D*H] or null (not read)
  const T* h0;                   // [D, B, H] or null (zeros)
  const T* c0[kMostCellStates];  // [D, B, H] or null (zeros)
  const T* dy;                   // [R, D*H] or null (zeros)
  V* dh;                         // [D, B, H], the gradient of the state h
  const V* dm;                   // [D, B, H], that of the projection's operand, or null without a projection
  V* dc;                         // [C, D, B, H]
  T* dgx;                        // [R, D*GH]
  T* dgh;                        // [R, D*GH], dgx unless the cell has a split gate
  T* dgh_step;                   // [D, B, GH]
  T* du;                         // [R, D*U*H]
  T* m;                          // [R, D*H], the projection's operand again, or null without a projection

  FASTRNN_INLINE void operator()(int64_t d, int64_t b, int64_t unit) const {
    constexpr int G = Cell::gates, C = Cell::cell_states, U = Cell::unit_vectors;
    if (b >= step[d].n) return;
    const int64_t row = step[d].first + b * stride_b, at = (row * D + d) * H + unit;
    const int64_t c_size = D * B * H;  // of a state
    const int64_t state = (d * B + b) * H + unit;
    const bool initial = b >= before[d].n;
    const int64_t row_before = before[d].first + b * stride_b;
    V activations[Cell::saved + 1], u[U + 1], gx[G], gh[G], du_step[U + 1], h{}, h_prev{}, dh_prev{};
    V c[C + 1], c_prev[C + 1], dc_step[C + 1];
    for (int k = 0; k < U; ++k) u[k] = to_real(weights[d].unit[k][unit]);
    for (int k = 0; k < Cell::saved; ++k) activations[k] = s[((d * R + row) * Cell::saved + k) * H + unit];
    if constexpr (Cell::saved == 0) h = to_real(y[at]);
    if constexpr (Cell::reads_h) {
      if (!initial) {
        h_prev = to_real(y[(row_before * D + d) * H + unit]);
      } else if (h0) {
        h_prev = to_real(h0[state]);
      }
    }
    for (int k = 0; k < C; ++k) {
      c[k] = saved_c[((d * R + row) * C + k) * H + unit];
      c_prev[k] = 0;
      if (!initial) {
        c_prev[k] = saved_c[((d * R + row_before) * C + k) * H + unit];
      } else if (c0[k]) {
        c_prev[k] = to_real(c0[k][state]);
      }
      dc_step[k] = dc[k * c_size + state];
    }
    const V dh_step = dm ? dm[state] : dh[state] + (dy ? to_real(dy[at]) : V(0));
    Cell::template backward<Activations>(activations, u, h_prev, h, c_prev, c, dh_step, dc_step, gx, gh,
                                         du_step, dh_prev);
    for (int k = 0; k < C; ++k) dc[k * c_size + state] = dc_step[k];
    for (int k = 0; k < U; ++k) du[((row * D + d) * U + k) * H + unit] = from_real<T>(du_step[k]);
    if constexpr (Cell::projects) {
      if (m) {
        V output{};
        Cell::template output<Activations>(activations, u, h_prev, c, output);
        m[at] = from_real<T>(output);
      }
    }
    if (!dm) dh[state] = dh_prev;
    for (int g = 0; g < G; ++g) {
      const int64_t gate = (row * D + d) * G * H + g * H + unit;
      const T of_x = from_real<T>(gx[g]), of_h = cells::has_split_gate<Cell> ? from_real<T>(gh[g]) : of_x;
      dgx[gate] = of_x;
      if constexpr (cells::has_split_gate<Cell>) dgh[gate] = of_h;
      dgh_step[(d * B + b) * G * H + g * H + unit] = of_h;
    }
  }
};

}  // namespace fastrnn::cuda
