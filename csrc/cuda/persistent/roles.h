#pragma once

#include "cells/registry.h"
#include "cuda/activations.h"
#include "cuda/persistent/addresses.h"
#include "cuda/persistent/tiling.h"

// What the two recurrences, forward and backward, compute at a place: the cell, and what it reads and writes.

namespace fastrnn::cuda {

// The forward.
template <class Cell_, Math math_>
struct ForwardRole {
  using Cell = Cell_;
  static constexpr Math math = math_;
  using T = Stored<math>;
  using Params = Recurrence<T>;
  static constexpr bool backward = false;
  static constexpr int G = Cell::gates;
  static constexpr int C = Cell::cell_states;
  static constexpr int parts = 1;  // of what is exchanged: h
  static constexpr int states = kept_states(C, Cell::reads_h, backward);

  const Params& p;
  const int d, H, last;
  const StepOrder order;
  const Addresses<T> at;

  FASTRNN_DEVICE ForwardRole(const Params& p, int d)
      : p(p),
        d(d),
        H(static_cast<int>(p.H)),
        last(static_cast<int>(p.rows.T) - 1),
        order{static_cast<int>(p.rows.T), d == 0},
        at(p, d) {}

  FASTRNN_DEVICE bool active(int i, int length) const { return order.time(i) < length; }

  // The weight for a gate of unit u and the exchanged h[k].
  FASTRNN_DEVICE T weight(int gate, int u, int /*part*/, int k) const {
    return p.weights[d].W_hh[int64_t{gate * H + u} * H + k];
  }

  // The address of h after the step of this row [H].
  FASTRNN_DEVICE const T* written(int64_t row) const { return p.y + at.output(row, 0); }
  // The address of h before the first step of sequence b; null for zeros.
  FASTRNN_DEVICE const T* given(int b) const { return p.h0 ? p.h0 + at.state(b, 0) : nullptr; }

  FASTRNN_DEVICE void start(int u, int b, float* state, int stride) const {
    for (int k = 0; k < C; ++k) state[k * stride] = p.c0[k] ? to_real(p.c0[k][at.state(b, u)]) : 0;
    if (Cell::reads_h) state[C * stride] = p.h0 ? to_real(p.h0[at.state(b, u)]) : 0;
  }

  // The biases of a unit.
  struct Biases {
    float ih[G], hh[G];
  };
  FASTRNN_DEVICE Biases load_biases(int u) const {
    const Weights<T>& w = p.weights[d];
    Biases biases;
    FASTRNN_UNROLL
    for (int gate = 0; gate < G; ++gate) {
      biases.ih[gate] = w.b_ih ? to_real(w.b_ih[gate * H + u]) : 0;
      biases.hh[gate] = w.b_hh ? to_real(w.b_hh[gate * H + u]) : 0;
    }
    return biases;
  }

  // The numbers as they are in memory: to convert one here would mean to wait for its load.
  struct Inputs {
    float gx[G];
  };
  FASTRNN_DEVICE Inputs load(const Place& place) const {
    Inputs in;
    const float* gx = p.gx + at.gate(place.row, G, place.u);
    FASTRNN_UNROLL
    for (int gate = 0; gate < G; ++gate) in.gx[gate] = gx[gate * H];
    return in;
  }

  // sums: W_hh h for the gates of the unit.
  FASTRNN_DEVICE void step(const Place& place, const Biases& biases, const Inputs& in, const float (&sums)[G],
                           float* state, int stride, T (&out)[parts]) const {
    float gx[G], gh[G], s[Cell::saved > 0 ? Cell::saved : 1], c[C + 1], h_prev = 0, h;
    FASTRNN_UNROLL
    for (int gate = 0; gate < G; ++gate) {
      gx[gate] = in.gx[gate] + biases.ih[gate];
      gh[gate] = sums[gate] + biases.hh[gate];
    }
    for (int k = 0; k < C; ++k) c[k] = state[k * stride];
    if (Cell::reads_h) h_prev = state[C * stride];
    cells::forward<Cell, Activations>(gx, gh, static_cast<const float*>(nullptr), h_prev, s, c, h);
    for (int k = 0; k < C; ++k) state[k * stride] = c[k];
    if (Cell::reads_h) state[C * stride] = h;

    out[0] = from_real<T>(h);
    p.y[at.output(place.row, place.u)] = out[0];
    if (Cell::saved > 0 && p.s) {
      float* saved = p.s + at.saved(place.row, Cell::saved, place.u);
      FASTRNN_UNROLL
      for (int k = 0; k < Cell::saved; ++k) saved[k * H] = s[k];
    }
    for (int k = 0; p.c && k < C; ++k) p.c[at.saved(place.row, C, place.u) + k * H] = c[k];
    if (order.ends(place.i, place.length)) {
      const int64_t end = at.state(place.b, place.u);
      if (p.hn) p.hn[end] = out[0];
      for (int k = 0; k < C; ++k) {
        if (p.cn[k]) p.cn[k][end] = from_real<T>(c[k]);
      }
    }
  }
};

// The backward, from the last step to the first. One more iteration, T, gives the gradients of h0 and c0. Between steps
// a unit keeps dc, and the share of dh that does not pass through W_hh.
template <class Cell_, Math math_>
struct BackwardRole {
  using Cell = Cell_;
  static constexpr Math math = math_;
  using T = Stored<math>;
  using Params = BackwardRecurrence<T>;
  static constexpr bool backward = true;
  static constexpr int G = Cell::gates;
  static constexpr int C = Cell::cell_states;
  static constexpr int parts = G;  // of what is exchanged: the gradients of the hidden state's shares
  static constexpr int states = kept_states(C, Cell::reads_h, backward);

  const Params& p;
  const int d, H, last;
  const StepOrder order;
  const Addresses<T> at;

  FASTRNN_DEVICE BackwardRole(const Params& p, int d)
      : p(p),
        d(d),
        H(static_cast<int>(p.H)),
        last(static_cast<int>(p.rows.T)),
        order{last, d == 1},
        at(p, d) {}

  FASTRNN_DEVICE bool active(int i, int length) const {
    return i == last ? length > 0 : order.time(i) < length;
  }

  FASTRNN_DEVICE T weight(int /*row*/, int u, int gate, int k) const {
    return p.weights[d].W_hh[int64_t{gate * H + k} * H + u];
  }

  FASTRNN_DEVICE const T* written(int64_t row) const { return p.dgh + at.gate(row, G, 0); }  // [G*H]
  FASTRNN_DEVICE const T* given(int /*b*/) const { return nullptr; }

  FASTRNN_DEVICE void start(int u, int b, float* state, int stride) const {
    state[0] = p.dhn ? to_real(p.dhn[at.state(b, u)]) : 0;
    for (int k = 0; k < C; ++k) {
      state[(1 + k) * stride] = p.dcn[k] ? to_real(p.dcn[k][at.state(b, u)]) : 0;
    }
  }

  struct Biases {};
  FASTRNN_DEVICE Biases load_biases(int /*u*/) const { return {}; }

  // Whether this is the step with which the forward began. If not, the step before it is that of iteration i + 1.
  FASTRNN_DEVICE bool is_first(const Place& place) const { return order.ends(place.i, place.length); }

  struct Inputs {
    uint32_t dy, h, h_prev;  // bits of a T
    uint32_t c_prev[C + 1];  // of a float, or, before the first step, of a T
    float c[C + 1], s[Cell::saved > 0 ? Cell::saved : 1];
  };
  FASTRNN_DEVICE Inputs load(const Place& place) const {
    Inputs in{};
    if (place.i == last) return in;
    const int u = place.u;
    const bool first = is_first(place);
    if (p.dy) in.dy = bits_of(p.dy[at.output(place.row, u)]);
    if (Cell::saved == 0) in.h = bits_of(p.y[at.output(place.row, u)]);
    if (Cell::reads_h) {
      const T* h_prev = !first ? p.y + at.output(place.next_row, u)
                        : p.h0 ? p.h0 + at.state(place.b, u)
                               : nullptr;
      if (h_prev) in.h_prev = bits_of(*h_prev);
    }
    for (int k = 0; k < C; ++k) {
      in.c[k] = p.c[at.saved(place.row, C, u) + k * H];
      if (!first) {
        in.c_prev[k] = bits_of(p.c[at.saved(place.next_row, C, u) + k * H]);
      } else if (p.c0[k]) {
        in.c_prev[k] = bits_of(p.c0[k][at.state(place.b, u)]);
      }
    }
    if (Cell::saved > 0) {
      const float* saved = p.s + at.saved(place.row, Cell::saved, u);
      FASTRNN_UNROLL
      for (int k = 0; k < Cell::saved; ++k) in.s[k] = saved[k * H];
    }
    return in;
  }

  FASTRNN_DEVICE static float real_of(uint32_t bits) { return to_real(from_bits<T>(bits)); }

  // sums: W_hh^T times the gradients of the hidden state's shares, of one step later.
  FASTRNN_DEVICE void step(const Place& place, const Biases&, const Inputs& in, const float (&sums)[1],
                           float* state, int stride, T (&out)[parts]) const {
    const float dh = sums[0] + state[0] + real_of(in.dy);
    float dc[C + 1];
    for (int k = 0; k < C; ++k) dc[k] = state[(1 + k) * stride];
    if (place.i == last) {
      const int64_t start = at.state(place.b, place.u);
      if (p.dh0) p.dh0[start] = from_real<T>(dh);
      for (int k = 0; k < C; ++k) {
        if (p.dc0[k]) p.dc0[k][start] = from_real<T>(dc[k]);
      }
      return;
    }
    const int64_t gates = at.gate(place.row, G, place.u);
    float c_prev[C + 1], dgx[G], dgh[G], dh_prev = 0;
    for (int k = 0; k < C; ++k) {
      c_prev[k] = is_first(place) ? real_of(in.c_prev[k]) : bit_cast<float>(in.c_prev[k]);
    }
    Cell::template backward<Activations>(in.s, static_cast<const float*>(nullptr), real_of(in.h_prev),
                                         real_of(in.h), c_prev, in.c, dh, dc, dgx, dgh,
                                         static_cast<float*>(nullptr), dh_prev);
    state[0] = dh_prev;
    for (int k = 0; k < C; ++k) state[(1 + k) * stride] = dc[k];
    FASTRNN_UNROLL
    for (int gate = 0; gate < G; ++gate) {
      p.dgx[gates + gate * H] = from_real<T>(dgx[gate]);
      out[gate] = from_real<T>(cells::has_split_gate<Cell> ? dgh[gate] : dgx[gate]);
      if (cells::has_split_gate<Cell>) p.dgh[gates + gate * H] = out[gate];
    }
  }
};

}  // namespace fastrnn::cuda
