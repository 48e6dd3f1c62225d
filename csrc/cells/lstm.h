#pragma once

#include "cells/cell_info.h"
#include "cells/inline.h"

namespace fastrnn::cells {

// Long short-term memory, as torch.nn.LSTM:
//   i, f, o = sigmoid(a)    g = tanh(a)
//   c' = f c + i g
//   h' = o tanh(c')
// a: a gate before its activation.
inline constexpr CellInfo kLstm{.name = "lstm",
                                .layer = "LSTM",
                                .gates = {"i", "f", "g", "o"},
                                .saved = 4,  // i f g o
                                .whole_gates = 4,
                                .states = {"h", "c"},
                                .parameters = {kW_ih, kW_hh, kB_ih, kB_hh, kW_hr},
                                .persistent = true};

struct Lstm : CellConstants<kLstm> {
  template <class M, class V>
  static FASTRNN_INLINE void activate(const V* a, const V* /*u*/, V* s, V* c) {
    s[0] = M::sigmoid(a[0]);
    s[1] = M::sigmoid(a[1]);
    s[2] = M::tanh(a[2]);
    s[3] = M::sigmoid(a[3]);
    c[0] = s[1] * c[0] + s[0] * s[2];
  }
  template <class M, class V>
  static FASTRNN_INLINE void output(V* s, const V* /*u*/, const V& /*h_prev*/, const V* c, V& h) {
    h = s[3] * M::tanh(c[0]);
  }

  template <class M, class V>
  static FASTRNN_INLINE void backward(const V* s, const V* /*u*/, const V& /*h_prev*/, const V& /*h*/,
                                      const V* c_prev, const V* c, const V& dh, V* dc, V* dgx, V* /*dgh*/,
                                      V* /*du*/, V& /*dh_prev*/) {
    V dc_of_h;
    backward_output<M>(s, c[0], dh, dgx, dc_of_h);
    dc[0] = dc[0] + dc_of_h;
    backward_gates<M>(s, c_prev[0], dc[0], dgx);
  }
  // do = dh tanh(c')    dc = dh o (1 - tanh(c')^2)
  // tanh(c') is computed again rather than saved: it is cheaper than the memory.
  template <class M, class V>
  static FASTRNN_INLINE void backward_output(const V* s, const V& c, const V& dh, V* dgx, V& dc) {
    const V o = s[3], tanh_c = M::tanh(c);
    dc = dh * o * (1 - tanh_c * tanh_c);
    dgx[3] = dh * tanh_c * o * (1 - o);
  }
  // di = dc g    df = dc c    dg = dc i    dc_prev = dc f
  template <class M, class V>
  static FASTRNN_INLINE void backward_gates(const V* s, const V& c_prev, V& dc, V* dgx) {
    const V i = s[0], f = s[1], g = s[2];
    dgx[0] = dc * g * i * (1 - i);
    dgx[1] = dc * c_prev * f * (1 - f);
    dgx[2] = dc * i * (1 - g * g);
    dc = dc * f;
  }
};

}  // namespace fastrnn::cells
