#pragma once

#include "cells/cell_info.h"
#include "cells/inline.h"

namespace fastrnn::cells {

// Elman RNN, as torch.nn.RNN:
//   h' = activation(a)     a: the gate before it
template <const CellInfo& info, class Activation>
struct Rnn : CellConstants<info> {
  template <class M, class V>
  static FASTRNN_INLINE void activate(const V* a, const V* /*u*/, V* s, V* /*c*/) {
    s[0] = a[0];
  }
  template <class M, class V>
  static FASTRNN_INLINE void output(V* s, const V* /*u*/, const V& /*h_prev*/, const V* /*c*/, V& h) {
    h = Activation::template forward<M>(s[0]);
  }

  template <class M, class V>
  static FASTRNN_INLINE void backward(const V* /*s*/, const V* /*u*/, const V& /*h_prev*/, const V& h,
                                      const V* /*c_prev*/, const V* /*c*/, const V& dh, V* /*dc*/, V* dgx,
                                      V* /*dgh*/, V* /*du*/, V& /*dh_prev*/) {
    dgx[0] = Activation::template backward<M>(h, dh);
  }
};

struct Tanh {
  template <class M, class V>
  static FASTRNN_INLINE V forward(const V& a) {
    return M::tanh(a);
  }
  template <class M, class V>
  static FASTRNN_INLINE V backward(const V& h, const V& dh) {
    return dh * (1 - h * h);
  }
};

struct Relu {
  template <class M, class V>
  static FASTRNN_INLINE V forward(const V& a) {
    return M::relu(a);
  }
  // Zero where h <= 0; a NaN in h lets dh through, as torch's threshold_backward does.
  template <class M, class V>
  static FASTRNN_INLINE V backward(const V& h, const V& dh) {
    return M::zero_unless_positive(h, dh);
  }
};

// saved: the backward needs h' only.
inline constexpr CellInfo kRnnTanh{
    .name = "rnn_tanh", .layer = "RNN", .gates = {"h"}, .saved = 0, .whole_gates = 1, .nonlinearity = "tanh"};
inline constexpr CellInfo kRnnRelu{
    .name = "rnn_relu", .layer = "RNN", .gates = {"h"}, .saved = 0, .whole_gates = 1, .nonlinearity = "relu"};
using RnnTanh = Rnn<kRnnTanh, Tanh>;
using RnnRelu = Rnn<kRnnRelu, Relu>;

}  // namespace fastrnn::cells
