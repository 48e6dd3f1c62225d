#pragma once

#include "cells/registry.h"
#include "core/random.h"
#include "cuda/activations.h"
#include "cuda/numbers.h"
#include "cuda/recurrence.h"

// What the kernels of a step are given, and what they have in common.

namespace fastrnn::cuda {

// The rows of a step. Sequence b < n has row first + b * stride_b.
struct StepRows {
  int64_t first, n;
};

// Zoneout's factor of the state before the step; that of the computed one is one less. at: the number of the unit in
// a sequence buffer [D, R, H]; k: of the state, 0 for h.
template <class T>
FASTRNN_INLINE Real<T> kept_share(const Noise<T>& noise, int64_t at, int k) {
  const double p = noise.zoneout[k];
  if (!noise.seed) return static_cast<Real<T>>(p);
  return keeps_state(*noise.seed, at, k, p) ? 1 : 0;
}

// What both passes are given of a step, and where its numbers stand.
template <class Cell, class T>
struct StepLayout {
  using V = Real<T>;
  static constexpr int G = Cell::gates, C = Cell::cell_states, U = Cell::unit_vectors;
  // What the functions of the cell save. Of a cell that is normalised the product with W_hh follows.
  static constexpr int kSaved = Cell::saved - (Cell::normalised ? G : 0);

  StepRows step[2];
  int64_t B, H, R, stride_b;
  int D;
  Weights<T> weights[2];
  Noise<T> noise;

  FASTRNN_INLINE bool has(int64_t d, int64_t b) const { return b < step[d].n; }
  FASTRNN_INLINE int64_t row(int64_t d, int64_t b) const { return step[d].first + b * stride_b; }
  // Where the numbers of a unit stand: in [D, B, H], in [D, R, n*H] and [R, D*n*H] the first of n, and a gate's in
  // [D, B, GH].
  FASTRNN_INLINE int64_t state(int64_t d, int64_t b, int64_t unit) const { return (d * B + b) * H + unit; }
  FASTRNN_INLINE int64_t saved(int64_t d, int64_t b, int64_t unit, int n) const {
    return (d * R + row(d, b)) * n * H + unit;
  }
  FASTRNN_INLINE int64_t in_row(int64_t d, int64_t b, int64_t unit, int n) const {
    return (row(d, b) * D + d) * n * H + unit;
  }
  FASTRNN_INLINE int64_t gate(int64_t d, int64_t b, int64_t unit, int g) const {
    return ((d * B + b) * G + g) * H + unit;
  }
  FASTRNN_INLINE int64_t all_states() const { return D * B * H; }  // numbers of a state

  FASTRNN_INLINE void load_unit_vectors(int64_t d, int64_t unit, V* u) const {
    for (int k = 0; k < U; ++k) u[k] = to_real(weights[d].unit[k][unit]);
  }
};

// A step of the forward. The hidden state's share gh has been computed.
template <class Cell, class T>
struct ForwardStep : StepLayout<Cell, T> {
  using Layout = StepLayout<Cell, T>;
  using Layout::all_states, Layout::gate, Layout::has, Layout::in_row, Layout::row, Layout::saved,
      Layout::state;
  using Layout::B, Layout::C, Layout::D, Layout::G, Layout::H, Layout::R, Layout::U, Layout::kSaved;
  using Layout::load_unit_vectors;
  using Layout::noise, Layout::step, Layout::stride_b, Layout::weights;
  using typename Layout::V;

  const V* gx;  // [R, D*GH]
  const V* gh;  // [D, B, GH], not read without W_hh
  T* h;         // [D, B, H], the state, or what the projection takes
  T* dropped;   // [D, B, H], the state times the dropout mask, or null
  V* h_real;    // [D, B, H], the state before it was rounded, or null
  V* c;         // [C, D, B, H]
  T* y;         // [R, D*H] or null
  V* s;         // [D, R, S*H] or null
  V* saved_c;   // [D, R, C*H] or null
  V* computed;  // [D, R, N*H] or null

  FASTRNN_INLINE V x_share(int64_t d, int64_t b, int64_t unit, int g) const {
    const T* bias = weights[d].b_ih;
    return gx[((row(d, b) * D + d) * G + g) * H + unit] + (bias ? to_real(bias[g * H + unit]) : V(0));
  }
  FASTRNN_INLINE V h_share(int64_t d, int64_t b, int64_t unit, int g) const {
    if constexpr (Cell::has_W_hh) {
      const T* bias = weights[d].b_hh;
      return gh[gate(d, b, unit, g)] + (bias ? to_real(bias[g * H + unit]) : V(0));
    } else {
      return to_real((dropped ? dropped : h)[state(d, b, unit)]);
    }
  }
  FASTRNN_INLINE V h_prev(int64_t d, int64_t b, int64_t unit) const {
    const int64_t i = state(d, b, unit);
    return h_real ? h_real[i] : to_real(h[i]);
  }

  // Saves and writes what the cell has computed: its activations, the states beside h, and h.
  FASTRNN_INLINE void finish(int64_t d, int64_t b, int64_t unit, const V* activations, const V* c_computed,
                             V h_computed) const {
    const int64_t i = state(d, b, unit);
    for (int k = 0; s && k < kSaved; ++k) s[saved(d, b, unit, Cell::saved) + k * H] = activations[k];
    if (computed) {
      constexpr int of_h = Cell::saved == 0;
      V* to = computed + saved(d, b, unit, of_h + C);
      if (of_h) to[0] = h_computed;
      for (int k = 0; k < C; ++k) to[(of_h + k) * H] = c_computed[k];
    }
    for (int k = 0; k < C; ++k) {
      V& c_k = c[k * all_states() + i];
      c_k = blend(d, b, unit, 1 + k, c_k, c_computed[k]);
      if (saved_c) saved_c[saved(d, b, unit, C) + k * H] = c_k;
    }
    V h_new = h_computed;
    if (noise.zoneout[0] > 0) h_new = blend(d, b, unit, 0, h_prev(d, b, unit), h_computed);
    h[i] = from_real<T>(h_new);
    if (h_real) h_real[i] = h_new;
    if (dropped) dropped[i] = from_real<T>(h_new * to_real(noise.mask[i]));
    if (y) y[(row(d, b) * D + d) * H + unit] = from_real<T>(h_new);
  }

 private:
  FASTRNN_INLINE V blend(int64_t d, int64_t b, int64_t unit, int k, V before, V now) const {
    if (!(noise.zoneout[k] > 0)) return now;
    const V kept = kept_share(noise, saved(d, b, unit, 1), k);
    return kept * before + (1 - kept) * now;
  }
};

// A step of the backward.
template <class Cell, class T>
struct BackwardStep : StepLayout<Cell, T> {
  using Layout = StepLayout<Cell, T>;
  using Layout::all_states, Layout::gate, Layout::has, Layout::in_row, Layout::row, Layout::saved,
      Layout::state;
  using Layout::B, Layout::C, Layout::D, Layout::G, Layout::H, Layout::R, Layout::U, Layout::kSaved;
  using Layout::load_unit_vectors;
  using Layout::noise, Layout::step, Layout::stride_b, Layout::weights;
  using typename Layout::V;

  StepRows before[2];            // the step before in the direction's order; n = 0 if there is none
  const V* s;                    // [D, R, S*H]
  const V* saved_c;              // [D, R, C*H]
  const V* computed;             // [D, R, N*H] or null without zoneout
  const T* y;                    // [R, D*H] or null (not read)
  const T* h0;                   // [D, B, H] or null (zeros)
  const T* c0[kMostCellStates];  // [D, B, H] or null (zeros)
  const T* dy;                   // [R, D*H] or null (zeros)
  V* dh;                         // [D, B, H], the gradient of the state h
  const V* dm;                   // [D, B, H], that of the projection's operand, or null without a projection
  V* dc;                         // [C, D, B, H]
  T* dgx;                        // [R, D*GH]
  T* dgh;                        // [R, D*GH], dgx unless has_own_dgh<Cell>
  T* dgh_step;                   // [D, B, GH], not written without W_hh
  T* du;                         // [R, D*U*H]

  FASTRNN_INLINE void load_activations(int64_t d, int64_t b, int64_t unit, V* activations) const {
    for (int k = 0; k < kSaved; ++k) activations[k] = s[saved(d, b, unit, Cell::saved) + k * H];
  }
  // What the cell computed: h if it saves nothing else, and state k beside h.
  FASTRNN_INLINE V h_computed(int64_t d, int64_t b, int64_t unit) const {
    return computed ? computed[saved(d, b, unit, 1 + C)] : to_real(y[in_row(d, b, unit, 1)]);
  }
  FASTRNN_INLINE V c_computed(int64_t d, int64_t b, int64_t unit, int k) const {
    constexpr int of_h = Cell::saved == 0;
    return computed ? computed[saved(d, b, unit, of_h + C) + (of_h + k) * H]
                    : saved_c[saved(d, b, unit, C) + k * H];
  }
  // The states before the step. Without W_hh the h that the cell reads has passed the dropout mask.
  FASTRNN_INLINE V h_prev(int64_t d, int64_t b, int64_t unit) const {
    const int64_t i = state(d, b, unit);
    V h = 0;
    if (b < before[d].n) {
      h = to_real(y[((before[d].first + b * stride_b) * D + d) * H + unit]);
    } else if (h0) {
      h = to_real(h0[i]);
    }
    return !Cell::has_W_hh && noise.mask ? h * to_real(noise.mask[i]) : h;
  }
  FASTRNN_INLINE V c_prev(int64_t d, int64_t b, int64_t unit, int k) const {
    if (b < before[d].n) {
      return saved_c[((d * R + before[d].first + b * stride_b) * C + k) * H + unit];
    }
    return c0[k] ? to_real(c0[k][state(d, b, unit)]) : V(0);
  }

  // The gradient of the step's h, or of what is projected.
  FASTRNN_INLINE V gradient_of_h(int64_t d, int64_t b, int64_t unit) const {
    const int64_t i = state(d, b, unit);
    if (dm) return dm[i];
    return dh[i] + (dy ? to_real(dy[in_row(d, b, unit, 1)]) : V(0));
  }
  // Zoneout parts the gradient of state k, 0 for h: this returns what the state before the step gets, and leaves the
  // gradient of what the cell computed.
  FASTRNN_INLINE V take_kept(int64_t d, int64_t b, int64_t unit, int k, V& gradient) const {
    if (!(noise.zoneout[k] > 0)) return 0;
    const V share = kept_share(noise, saved(d, b, unit, 1), k), kept = share * gradient;
    gradient = (1 - share) * gradient;
    return kept;
  }

  FASTRNN_INLINE void store_dgx(int64_t d, int64_t b, int64_t unit, int g, V gradient) const {
    dgx[in_row(d, b, unit, G) + g * H] = from_real<T>(gradient);
  }
  // dgx itself unless has_own_dgh<Cell>.
  FASTRNN_INLINE void store_dgh(int64_t d, int64_t b, int64_t unit, int g, V gradient) const {
    const T rounded = from_real<T>(gradient);
    if constexpr (has_own_dgh<Cell>) dgh[in_row(d, b, unit, G) + g * H] = rounded;
    if constexpr (Cell::has_W_hh) dgh_step[gate(d, b, unit, g)] = rounded;
  }
  FASTRNN_INLINE void store_du(int64_t d, int64_t b, int64_t unit, int k, V gradient) const {
    du[in_row(d, b, unit, U) + k * H] = from_real<T>(gradient);
  }
};

}  // namespace fastrnn::cuda
