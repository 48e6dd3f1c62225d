#pragma once

#include "cells/cell_info.h"
#include "cells/inline.h"

namespace fastrnn::cells {

// sLSTM of xLSTM (Beck et al. 2024, https://arxiv.org/abs/2405.04517): an LSTM with an exponential input gate, a
// normaliser n and a stabiliser m, which keeps the exponentials within 1:
//   z = tanh(a)    o = sigmoid(a)
//   m' = max(log sigmoid(a_f) + m, a_i)        a_i where n = 0: nothing is stored yet
//   i = exp(a_i - m')    f = exp(log sigmoid(a_f) + m - m')
//   c' = f c + i z    n' = f n + i
//   h' = o c' / n'
inline constexpr CellInfo kSLstm{.name = "slstm",
                                 .layer = "sLSTM",
                                 .gates = {"i", "f", "z", "o"},
                                 .saved = 5,  // i f z o, and sigmoid(-a_f)
                                 .whole_gates = 4,
                                 .states = {"h", "c", "n", "m"},
                                 .parameters = {kW_hh}};

struct SLstm : CellConstants<kSLstm> {
  template <class M, class V>
  static FASTRNN_INLINE void activate(const V* a, const V* /*u*/, V* s, V* c) {
    const V kept = M::log_sigmoid(a[1]) + c[2];
    const V m = M::if_positive(c[1], M::if_positive(kept - a[0], kept, a[0]), a[0]);
    const V log_f = kept - m;
    s[0] = M::exp(a[0] - m);
    s[1] = M::exp(log_f - M::relu(log_f));  // where n = 0 it may be more than 1, and multiplies zeros
    s[2] = M::tanh(a[2]);
    s[3] = M::sigmoid(a[3]);
    s[4] = M::sigmoid(0 - a[1]);
    c[0] = s[1] * c[0] + s[0] * s[2];
    c[1] = s[1] * c[1] + s[0];
    c[2] = m;
  }
  template <class M, class V>
  static FASTRNN_INLINE void output(V* s, const V* /*u*/, const V& /*h_prev*/, const V* c, V& h) {
    h = s[3] * (c[0] / c[1]);
  }

  // Through m too: dm goes to what was the maximum, a_i if i = 1.
  template <class M, class V>
  static FASTRNN_INLINE void backward(const V* s, const V* /*u*/, const V& /*h_prev*/, const V& /*h*/,
                                      const V* c_prev, const V* c, const V& dh, V* dc, V* dgx, V* /*dgh*/,
                                      V* /*du*/, V& /*dh_prev*/) {
    const V i = s[0], f = s[1], z = s[2], o = s[3];
    const V ratio = c[0] / c[1], d_ratio = dh * o / c[1];
    const V dc_all = dc[0] + d_ratio, dn = dc[1] - d_ratio * ratio;
    const V di = (dc_all * z + dn) * i, df_open = (dc_all * c_prev[0] + dn * c_prev[1]) * f;
    // Where n = 0, f = 1 is its limit.
    const V df = M::if_positive(c_prev[1], df_open, M::zero_unless_positive(1 - f, df_open));
    const V dm = dc[2] - di - df, zero = M::zero_unless_positive(i - 1, dm);  // i <= 1
    const V d_kept = df + M::if_positive(1 - i, dm, zero);
    dgx[0] = di + M::if_positive(1 - i, zero, dm);
    dgx[1] = d_kept * s[4];
    dgx[2] = dc_all * i * (1 - z * z);
    dgx[3] = dh * ratio * o * (1 - o);
    dc[0] = dc_all * f;
    dc[1] = dn * f;
    dc[2] = d_kept;
  }
};

}  // namespace fastrnn::cells
