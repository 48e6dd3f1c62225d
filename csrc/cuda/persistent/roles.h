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
  const Addresses at;

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
  FASTRNN_DEVICE const T* written(int row) const { return at.output(p.y, 0).at(row); }
  // The address of h before the first step of sequence b; null for zeros.
  FASTRNN_DEVICE const T* given(int b) const { return p.h0 ? p.h0 + at.state(b, 0) : nullptr; }

  FASTRNN_DEVICE void start(int u, int b, float* state, int stride) const {
    for (int k = 0; k < C; ++k) state[k * stride] = p.c0[k] ? to_real(p.c0[k][at.state(b, u)]) : 0;
    if (Cell::reads_h) state[C * stride] = p.h0 ? to_real(p.h0[at.state(b, u)]) : 0;
  }

  // What a lane reads and writes in every step. u: its first unit
  struct Columns {
    Column<const float> gx;
    Column<T> y;
    Column<float> s, c;

    template <class Ctx>
    FASTRNN_DEVICE void keep_in_registers(Ctx& ctx) {
      gx.keep_in_registers(ctx);
      y.keep_in_registers(ctx);
      if (Cell::saved > 0) s.keep_in_registers(ctx);
      if (C > 0) c.keep_in_registers(ctx);
    }
  };
  FASTRNN_DEVICE Columns columns(int u) const {
    return {at.gate(p.gx, G, u), at.output(p.y, u), at.saved(p.s, Cell::saved, u), at.saved(p.c, C, u)};
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
  FASTRNN_DEVICE Inputs load(const Columns& columns, const Place& place) const {
    Inputs in;
    const float* gx = columns.gx.at(place);
    FASTRNN_UNROLL
    for (int gate = 0; gate < G; ++gate) in.gx[gate] = gx[gate * H];
    return in;
  }

  struct Results {
    T h;
    float s[Cell::saved > 0 ? Cell::saved : 1], c[C + 1];
  };
  // sums: W_hh h for the gates of the unit. Where a unit takes no part in the step, its state stays.
  FASTRNN_DEVICE Results step(bool takes_part, const Place&, const Biases& biases, const Inputs& in,
                              const float (&sums)[G], float* state, int stride) const {
    float gx[G], gh[G], h_prev = 0, h;
    FASTRNN_UNROLL
    for (int gate = 0; gate < G; ++gate) {
      gx[gate] = in.gx[gate] + biases.ih[gate];
      gh[gate] = sums[gate] + biases.hh[gate];
    }
    Results results;
    for (int k = 0; k < C; ++k) results.c[k] = state[k * stride];
    if (Cell::reads_h) h_prev = state[C * stride];
    cells::forward<Cell, Activations>(gx, gh, static_cast<const float*>(nullptr), h_prev, results.s,
                                      results.c, h);
    if (takes_part) {
      for (int k = 0; k < C; ++k) state[k * stride] = results.c[k];
      if (Cell::reads_h) state[C * stride] = h;
    }
    results.h = from_real<T>(h);
    return results;
  }

  FASTRNN_DEVICE static T exchanged(const Results& results, int /*part*/) { return results.h; }

  FASTRNN_DEVICE void save(const Columns& columns, const Place& place, const Results& results) const {
    *columns.y.at(place) = results.h;
    if (Cell::saved > 0 && columns.s) {
      float* saved = columns.s.at(place);
      FASTRNN_UNROLL
      for (int k = 0; k < Cell::saved; ++k) saved[k * H] = results.s[k];
    }
    if (C > 0 && columns.c) {
      float* c = columns.c.at(place);
      for (int k = 0; k < C; ++k) c[k * H] = results.c[k];
    }
    if (order.ends(place.i, place.length)) {
      const int64_t end = at.state(place.b, place.u);
      if (p.hn) p.hn[end] = results.h;
      for (int k = 0; k < C; ++k) {
        if (p.cn[k]) p.cn[k][end] = from_real<T>(results.c[k]);
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
  const Addresses at;

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

  FASTRNN_DEVICE const T* written(int row) const { return at.gate(p.dgh, G, 0).at(row); }  // [G*H]
  FASTRNN_DEVICE const T* given(int /*b*/) const { return nullptr; }

  FASTRNN_DEVICE void start(int u, int b, float* state, int stride) const {
    state[0] = p.dhn ? to_real(p.dhn[at.state(b, u)]) : 0;
    for (int k = 0; k < C; ++k) {
      state[(1 + k) * stride] = p.dcn[k] ? to_real(p.dcn[k][at.state(b, u)]) : 0;
    }
  }

  struct Columns {
    Column<const T> dy, y;
    Column<const float> s, c;
    Column<T> dgh;

    template <class Ctx>
    FASTRNN_DEVICE void keep_in_registers(Ctx& ctx) {
      dy.keep_in_registers(ctx);
      if (Cell::saved == 0 || Cell::reads_h) y.keep_in_registers(ctx);
      if (Cell::saved > 0) s.keep_in_registers(ctx);
      if (C > 0) c.keep_in_registers(ctx);
      dgh.keep_in_registers(ctx);
    }
  };
  FASTRNN_DEVICE Columns columns(int u) const {
    return {at.output(p.dy, u), at.output(p.y, u), at.saved(p.s, Cell::saved, u), at.saved(p.c, C, u),
            at.gate(p.dgh, G, u)};
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
  FASTRNN_DEVICE Inputs load(const Columns& columns, const Place& place) const {
    Inputs in{};
    if (place.i == last) return in;
    const bool first = is_first(place);
    if (columns.dy) in.dy = bits_of(*columns.dy.at(place));
    if (Cell::saved == 0) in.h = bits_of(*columns.y.at(place));
    if (Cell::reads_h) {
      const T* h_prev = !first ? columns.y.at(place.next_row) + place.offset
                        : p.h0 ? p.h0 + at.state(place.b, place.u)
                               : nullptr;
      if (h_prev) in.h_prev = bits_of(*h_prev);
    }
    for (int k = 0; k < C; ++k) {
      in.c[k] = columns.c.at(place)[k * H];
      if (!first) {
        in.c_prev[k] = bits_of(columns.c.at(place.next_row)[place.offset + k * H]);
      } else if (p.c0[k]) {
        in.c_prev[k] = bits_of(p.c0[k][at.state(place.b, place.u)]);
      }
    }
    if (Cell::saved > 0) {
      const float* saved = columns.s.at(place);
      FASTRNN_UNROLL
      for (int k = 0; k < Cell::saved; ++k) in.s[k] = saved[k * H];
    }
    return in;
  }

  FASTRNN_DEVICE static float real_of(uint32_t bits) { return to_real(from_bits<T>(bits)); }

  struct Results {
    T dgx[G], dgh[cells::has_split_gate<Cell> ? G : 1];
  };
  // sums: W_hh^T times the gradients of the hidden state's shares, of one step later.
  FASTRNN_DEVICE Results step(bool takes_part, const Place& place, const Biases&, const Inputs& in,
                              const float (&sums)[1], float* state, int stride) const {
    // Before its last step a sequence has no gate gradients, and 0 * W would be NaN for infinite W.
    const float dh_sum = order.before(place.i, place.length) < 0 ? 0 : sums[0];
    const float dh = dh_sum + state[0] + real_of(in.dy);
    float dc[C + 1];
    for (int k = 0; k < C; ++k) dc[k] = state[(1 + k) * stride];
    Results results{};
    if (place.i == last) {
      const int64_t start = at.state(place.b, place.u);
      if (takes_part && p.dh0) p.dh0[start] = from_real<T>(dh);
      for (int k = 0; k < C; ++k) {
        if (takes_part && p.dc0[k]) p.dc0[k][start] = from_real<T>(dc[k]);
      }
      return results;
    }
    float c_prev[C + 1], dgx[G], dgh[G], dh_prev = 0;
    for (int k = 0; k < C; ++k) {
      c_prev[k] = is_first(place) ? real_of(in.c_prev[k]) : bit_cast<float>(in.c_prev[k]);
    }
    Cell::template backward<Activations>(in.s, static_cast<const float*>(nullptr), real_of(in.h_prev),
                                         real_of(in.h), c_prev, in.c, dh, dc, dgx, dgh,
                                         static_cast<float*>(nullptr), dh_prev);
    if (takes_part) {
      state[0] = dh_prev;
      for (int k = 0; k < C; ++k) state[(1 + k) * stride] = dc[k];
    }
    FASTRNN_UNROLL
    for (int gate = 0; gate < G; ++gate) {
      results.dgx[gate] = from_real<T>(dgx[gate]);
      if constexpr (cells::has_split_gate<Cell>) results.dgh[gate] = from_real<T>(dgh[gate]);
    }
    return results;
  }

  FASTRNN_DEVICE static T exchanged(const Results& results, int part) {
    if constexpr (cells::has_split_gate<Cell>) {
      return results.dgh[part];
    } else {
      return results.dgx[part];
    }
  }

  FASTRNN_DEVICE void save(const Columns& columns, const Place& place, const Results& results) const {
    if (place.i == last) return;
    T* dgh = columns.dgh.at(place);
    FASTRNN_UNROLL
    for (int gate = 0; gate < G; ++gate) dgh[gate * H] = exchanged(results, gate);
    if constexpr (cells::has_split_gate<Cell>) {
      T* dgx = at.gate(p.dgx, G, place.u).at(place.row);
      FASTRNN_UNROLL
      for (int gate = 0; gate < G; ++gate) dgx[gate * H] = results.dgx[gate];
    }
  }
};

}  // namespace fastrnn::cuda
