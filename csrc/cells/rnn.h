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

struct Sigmoid {
  template <class M, class V>
  static FASTRNN_INLINE V forward(const V& a) {
    return M::sigmoid(a);
  }
  template <class M, class V>
  static FASTRNN_INLINE V backward(const V& h, const V& dh) {
    return dh * h * (1 - h);
  }
};

struct Identity {
  template <class M, class V>
  static FASTRNN_INLINE V forward(const V& a) {
    return a;
  }
  template <class M, class V>
  static FASTRNN_INLINE V backward(const V& /*h*/, const V& dh) {
    return dh;
  }
};

constexpr CellInfo elman(const char* name, const char* nonlinearity, bool persistent = false) {
  return {.name = name,
          .layer = "RNN",
          .gates = {"h"},
          .saved = 0,  // the backward needs h' only
          .whole_gates = 1,
          .nonlinearity = nonlinearity,
          .persistent = persistent};
}
inline constexpr CellInfo kRnnTanh = elman("rnn_tanh", "tanh", /*persistent=*/true);
inline constexpr CellInfo kRnnRelu = elman("rnn_relu", "relu", /*persistent=*/true);
inline constexpr CellInfo kRnnSigmoid = elman("rnn_sigmoid", "sigmoid");
inline constexpr CellInfo kRnnIdentity = elman("rnn_identity", "identity");
using RnnTanh = Rnn<kRnnTanh, Tanh>;
using RnnRelu = Rnn<kRnnRelu, Relu>;
using RnnSigmoid = Rnn<kRnnSigmoid, Sigmoid>;
using RnnIdentity = Rnn<kRnnIdentity, Identity>;

}  // namespace fastrnn::cells
