#pragma once

#include "cells/cell_info.h"
#include "cells/inline.h"

namespace fastrnn::cells {

// A cell that no library has, with three states and a vector v of numbers for each unit:
//   f = sigmoid(a_f + v c)    g = tanh(a_g)
//   c' = f c + (1 - f) g      m' = f m + c'      h' = tanh(m')
inline constexpr CellInfo kThreeStates{
    .name = "three_states",
    .layer = "ThreeStates",
    .gates = {"f", "g"},
    .saved = 2,  // f g
    .whole_gates = 2,
    .states = {"h", "c", "m"},
    .parameters = {kW_ih, kW_hh, kB_ih, kB_hh, {"v", "weight_v", ParameterKind::unit_vectors}}};

struct ThreeStates : CellConstants<kThreeStates> {
  template <class M, class V>
  static FASTRNN_INLINE void activate(const V* a, const V* u, V* s, V* c) {
    s[0] = M::sigmoid(a[0] + u[0] * c[0]);
    s[1] = M::tanh(a[1]);
    c[0] = s[1] + s[0] * (c[0] - s[1]);
    c[1] = s[0] * c[1] + c[0];
  }
  template <class M, class V>
  static FASTRNN_INLINE void output(V* /*s*/, const V* /*u*/, const V& /*h_prev*/, const V* c, V& h) {
    h = M::tanh(c[1]);
  }

  template <class M, class V>
  static FASTRNN_INLINE void backward(const V* s, const V* u, const V& /*h_prev*/, const V& /*h*/,
                                      const V* c_prev, const V* c, const V& dh, V* dc, V* dgx, V* /*dgh*/,
                                      V* du, V& /*dh_prev*/) {
    const V f = s[0], g = s[1], h = M::tanh(c[1]);
    const V dm = dc[1] + dh * (1 - h * h);
    const V dc_total = dc[0] + dm;
    dgx[0] = (dc_total * (c_prev[0] - g) + dm * c_prev[1]) * f * (1 - f);
    dgx[1] = dc_total * (1 - f) * (1 - g * g);
    du[0] = dgx[0] * c_prev[0];
    dc[0] = dc_total * f + dgx[0] * u[0];
    dc[1] = dm * f;
  }
};

}  // namespace fastrnn::cells
