#pragma once

#include "cuda/stepwise/step.h"

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

// to[i] = h[i] mask[i]: the state times the dropout mask.
template <class T>
struct Drop {
  const T *h, *mask;
  T* to;
  int64_t width;

  FASTRNN_INLINE void operator()(int64_t, int64_t row, int64_t column) const {
    const int64_t i = row * width + column;
    to[i] = from_real<T>(to_real(h[i]) * to_real(mask[i]));
  }
};

// A step of the cell, for (d, b, unit).
template <class Cell, class T>
struct CellForward : ForwardStep<Cell, T> {
  using Step = ForwardStep<Cell, T>;
  using Step::C, Step::G, Step::U;
  using typename Step::V;

  FASTRNN_INLINE void operator()(int64_t d, int64_t b, int64_t unit) const {
    if (!this->has(d, b)) return;
    V x_share[G], h_share[G], s[Cell::saved + 1], u[U + 1], c[C + 1], h{}, h_prev{};
    this->load_unit_vectors(d, unit, u);
    for (int g = 0; g < G; ++g) {
      x_share[g] = this->x_share(d, b, unit, g);
      h_share[g] = this->h_share(d, b, unit, g);
    }
    if constexpr (Cell::reads_h) h_prev = this->h_prev(d, b, unit);
    for (int k = 0; k < C; ++k) c[k] = this->c[k * this->all_states() + this->state(d, b, unit)];
    cells::forward<Cell, Activations>(x_share, h_share, u, h_prev, s, c, h);
    this->finish(d, b, unit, s, c, h);
  }
};

// Copies the projected state to y's rows of a step, for (d, b, p).
template <class T>
struct StoreOutput {
  StepRows step[2];
  int64_t B, P, stride_b;
  int D;
  const T* h;     // [D, B, P]
  const T* mask;  // [D, B, P] or null
  T* dropped;     // [D, B, P], h times the mask, or null
  T* y;           // [R, D*P]

  FASTRNN_INLINE void operator()(int64_t d, int64_t b, int64_t p) const {
    if (b >= step[d].n) return;
    const int64_t i = (d * B + b) * P + p;
    y[((step[d].first + b * stride_b) * D + d) * P + p] = h[i];
    if (dropped) dropped[i] = from_real<T>(to_real(h[i]) * to_real(mask[i]));
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

// With a dropout mask: adds what the product with W_hh passes on to dh, for (d, b, p).
template <class T>
struct AddDropped {
  StepRows step[2];
  int64_t B, P;
  const Real<T>* product;  // [D, B, P]
  const T* mask;           // [D, B, P]
  Real<T>* dh;             // [D, B, P]

  FASTRNN_INLINE void operator()(int64_t d, int64_t b, int64_t p) const {
    if (b >= step[d].n) return;
    const int64_t i = (d * B + b) * P + p;
    dh[i] += product[i] * to_real(mask[i]);
  }
};

// The gate gradients of a step, for (d, b, unit).
template <class Cell, class T>
struct CellBackward : BackwardStep<Cell, T> {
  using Step = BackwardStep<Cell, T>;
  using Step::C, Step::G, Step::U;
  using typename Step::V;

  T* m;  // [R, D*H], the projection's operand again, or null without a projection

  FASTRNN_INLINE void operator()(int64_t d, int64_t b, int64_t unit) const {
    if (!this->has(d, b)) return;
    const int64_t i = this->state(d, b, unit);
    V s[Cell::saved + 1], u[U + 1], gx[G], gh[G], du[U + 1], h{}, h_prev{}, dh_prev{};
    V c[C + 1], c_prev[C + 1], dc[C + 1], kept_dc[C + 1];
    this->load_unit_vectors(d, unit, u);
    this->load_activations(d, b, unit, s);
    if constexpr (Cell::saved == 0) h = this->h_computed(d, b, unit);
    if constexpr (Cell::reads_h) h_prev = this->h_prev(d, b, unit);
    for (int k = 0; k < C; ++k) {
      c[k] = this->c_computed(d, b, unit, k);
      c_prev[k] = this->c_prev(d, b, unit, k);
      dc[k] = this->dc[k * this->all_states() + i];
      kept_dc[k] = this->take_kept(d, b, unit, 1 + k, dc[k]);
    }
    V dh = this->gradient_of_h(d, b, unit);
    const V kept_dh = this->take_kept(d, b, unit, 0, dh);
    Cell::template backward<Activations>(s, u, h_prev, h, c_prev, c, dh, dc, gx, gh, du, dh_prev);
    for (int k = 0; k < C; ++k) this->dc[k * this->all_states() + i] = dc[k] + kept_dc[k];
    for (int k = 0; k < U; ++k) this->store_du(d, b, unit, k, du[k]);
    if constexpr (Cell::projects) {
      if (m) {
        V output{};
        Cell::template output<Activations>(s, u, h_prev, c, output);
        m[this->in_row(d, b, unit, 1)] = from_real<T>(output);
      }
    }
    if constexpr (!Cell::has_W_hh) {
      const T* mask = this->noise.mask;
      dh_prev += mask ? gh[0] * to_real(mask[i]) : gh[0];
    }
    if (!this->dm) this->dh[i] = dh_prev + kept_dh;
    for (int g = 0; g < G; ++g) {
      this->store_dgx(d, b, unit, g, gx[g]);
      this->store_dgh(d, b, unit, g, cells::has_split_gate<Cell> ? gh[g] : gx[g]);
    }
  }
};

// ---- a cell with late gates ----

// The first part of a step, for (d, b, unit): v, and what the second one needs.
template <class Cell, class T>
struct EarlyForward : ForwardStep<Cell, T> {
  using Step = ForwardStep<Cell, T>;
  using typename Step::V;
  static constexpr int E = Cell::gates - Cell::late_gates;

  V* kept;  // [S, D, B, H]
  T* v;     // [D, B, H], times the dropout mask

  FASTRNN_INLINE void operator()(int64_t d, int64_t b, int64_t unit) const {
    if (!this->has(d, b)) return;
    const int64_t i = this->state(d, b, unit);
    V a[E], s[Cell::saved], v_of_unit;
    for (int g = 0; g < E; ++g) a[g] = this->x_share(d, b, unit, g) + this->h_share(d, b, unit, g);
    Cell::template activate<Activations>(a, this->h_prev(d, b, unit), s, v_of_unit);
    for (int k = 0; k < Cell::saved; ++k) kept[k * this->all_states() + i] = s[k];
    const T* mask = this->noise.mask;
    v[i] = from_real<T>(mask ? v_of_unit * to_real(mask[i]) : v_of_unit);
  }
};

// The second part, after the product with v.
template <class Cell, class T>
struct LateForward : ForwardStep<Cell, T> {
  using Step = ForwardStep<Cell, T>;
  using typename Step::V;
  static constexpr int E = Cell::gates - Cell::late_gates;

  const V* kept;  // [S, D, B, H]

  FASTRNN_INLINE void operator()(int64_t d, int64_t b, int64_t unit) const {
    if (!this->has(d, b)) return;
    V a[Cell::late_gates], s[Cell::saved], h;
    for (int g = E; g < Cell::gates; ++g) {
      a[g - E] = this->x_share(d, b, unit, g) + this->h_share(d, b, unit, g);
    }
    for (int k = 0; k < Cell::saved; ++k) s[k] = kept[k * this->all_states() + this->state(d, b, unit)];
    Cell::template output<Activations>(a, this->h_prev(d, b, unit), s, h);
    this->finish(d, b, unit, s, nullptr, h);
  }
};

// The backward of the second part: the gradients of the gates that it is computed from.
template <class Cell, class T>
struct LateBackward : BackwardStep<Cell, T> {
  using Step = BackwardStep<Cell, T>;
  using typename Step::V;

  FASTRNN_INLINE void operator()(int64_t d, int64_t b, int64_t unit) const {
    if (!this->has(d, b)) return;
    V s[Cell::saved], gx[Cell::gates] = {}, dh_prev{}, dh = this->gradient_of_h(d, b, unit);
    const V kept_dh = this->take_kept(d, b, unit, 0, dh);
    this->load_activations(d, b, unit, s);
    Cell::template backward_output<Activations>(s, this->h_prev(d, b, unit), dh, gx, dh_prev);
    this->dh[this->state(d, b, unit)] = dh_prev + kept_dh;
    for (int g = 0; g < Cell::gates; ++g) {
      this->store_dgx(d, b, unit, g, gx[g]);
      this->store_dgh(d, b, unit, g, gx[g]);
    }
  }
};

// That of the first part, from the gradient of v: the other gates'; and v again.
template <class Cell, class T>
struct EarlyBackward : BackwardStep<Cell, T> {
  using Step = BackwardStep<Cell, T>;
  using Step::G;
  using typename Step::V;

  const V* dv;  // [D, B, H]
  T* v;         // [R, D*H], times the dropout mask, or null (not wanted)

  FASTRNN_INLINE void operator()(int64_t d, int64_t b, int64_t unit) const {
    if (!this->has(d, b)) return;
    const int64_t i = this->state(d, b, unit);
    const V factor = this->noise.mask ? to_real(this->noise.mask[i]) : V(1);
    V s[Cell::saved], gx[G], dh_prev = this->dh[i], v_of_unit;
    this->load_activations(d, b, unit, s);
    for (int g = 0; g < G; ++g) gx[g] = to_real(this->dgx[this->in_row(d, b, unit, G) + g * this->H]);
    Cell::template backward_activate<Activations>(s, this->h_prev(d, b, unit), dv[i] * factor, gx, dh_prev,
                                                  v_of_unit);
    this->dh[i] = dh_prev;
    for (int g = 0; g < G - Cell::late_gates; ++g) {
      this->store_dgx(d, b, unit, g, gx[g]);
      this->store_dgh(d, b, unit, g, gx[g]);
    }
    if (v) v[this->in_row(d, b, unit, 1)] = from_real<T>(v_of_unit * factor);
  }
};

}  // namespace fastrnn::cuda
