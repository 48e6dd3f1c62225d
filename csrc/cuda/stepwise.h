#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/arena.h"
#include "cuda/gemm.h"
#include "cuda/pointwise.h"

// Tier 0: step after step a product and a pointwise kernel, both directions side by side. Any device, any
// size, packed input and projections. What the product reads and writes has a place of its own for each
// sequence, so a step of a packed batch takes the first n of them and leaves the others as they are.
//
// Q, the queue that the work goes to: the device's (csrc/cuda/queue.h), or loops on the host (tests/csrc).
//   launch(depth, rows, columns, f)  calls f(i, row, column) for all of them
//   multiply(gemm)                   csrc/cuda/gemm.h
//   copy(to, from, count)

namespace fastrnn::cuda::stepwise {

// What both sweeps share. P = H without a projection.
template <class Cell, class T, class Params>
class Sweep {
 protected:
  using V = Real<T>;
  static constexpr int C = Cell::cell_states;

  Sweep(const Params& recurrence, const Rows& rows, int64_t P, Arena& arena)
      : r(recurrence), rows(rows), P(P), GH(Cell::gates * r.H), projected(r.weights[0].W_hr != nullptr) {
    if (r.D == 2) {
      W_hh_ = arena.take<T>(2 * GH * P);
      if (projected) W_hr_ = arena.take<T>(2 * P * r.H);
    }
  }

  // The weights of two directions side by side, so that one batch of products takes them.
  template <class Q>
  void stack_weights(Q& queue) {
    if (r.D == 1) {
      W_hh = r.weights[0].W_hh;
      W_hr = r.weights[0].W_hr;
      return;
    }
    for (int d = 0; d < 2; ++d) {
      queue.copy(W_hh_ + d * GH * P, r.weights[d].W_hh, GH * P);
      if (projected) queue.copy(W_hr_ + d * P * r.H, r.weights[d].W_hr, P * r.H);
    }
    W_hh = W_hh_;
    W_hr = W_hr_;
  }

  // The rows of step i of each direction's sweep; none before the first step.
  StepRows step_rows(int d, int64_t i) const {
    if (i < 0) return {0, 0};
    const int64_t t = d == 0 ? i : rows.T - 1 - i;
    return {rows.first(t), rows.n(t)};
  }
  // The sequences that either direction has.
  int64_t sequences(int64_t i) const {
    return r.D == 1 || step_rows(0, i).n > step_rows(1, i).n ? step_rows(0, i).n : step_rows(1, i).n;
  }
  template <class Body>
  Body at_step(int64_t i, Body body) const {
    for (int d = 0; d < r.D; ++d) body.step[d] = step_rows(d, i);
    return body;
  }

  // C (+)= A B on the sequences of step i, for each direction: at once, unless they have different numbers of
  // sequences.
  template <class Q, class TC>
  void multiply(Q& queue, int64_t i, Gemm<T, TC> gemm) const {
    gemm.batch = r.D;
    gemm.M = step_rows(0, i).n;
    if (r.D == 1 || gemm.M == step_rows(1, i).n) return queue.multiply(gemm);
    gemm.batch = 1;
    queue.multiply(gemm);
    gemm.M = step_rows(1, i).n;
    gemm.A.data += gemm.A.stride;
    gemm.B.data += gemm.B.stride;
    gemm.C.data += gemm.C.stride;
    queue.multiply(gemm);
  }

  const Params r;
  const Rows rows;  // with arrays on the host
  const int64_t P, GH;
  const bool projected;
  const T *W_hh = nullptr, *W_hr = nullptr;  // [D, GH, P], [D, P, H]

 private:
  T *W_hh_ = nullptr, *W_hr_ = nullptr;
};

template <class Cell, class T>
class Forward : Sweep<Cell, T, Recurrence<T>> {
  using Base = Sweep<Cell, T, Recurrence<T>>;
  using typename Base::V;

 public:
  Forward(const Recurrence<T>& recurrence, const Rows& rows, int64_t P, Arena& arena)
      : Base(recurrence, rows, P, arena) {
    const int64_t DB = r.D * rows.B;
    h = r.hn ? r.hn : arena.take<T>(DB * P);
    gh = arena.take<V>(DB * GH);
    if (Cell::reads_h && !std::is_same_v<T, V>) h_real = arena.take<V>(DB * P);
    if (C > 0) c = arena.take<V>(C * DB * r.H);
    if (projected) m = arena.take<T>(DB * r.H);
  }

  template <class Q>
  void run(Q& queue) {
    const int64_t B = rows.B, H = r.H, DB = r.D * B;
    this->stack_weights(queue);
    queue.launch(1, DB, P, Assign<T, T>{r.h0, h, P});
    if (h_real) queue.launch(1, DB, P, Assign<T, V>{r.h0, h_real, P});
    for (int k = 0; k < C; ++k) queue.launch(1, DB, H, Assign<T, V>{r.c0[k], c + k * DB * H, H});
    const CellForward<Cell, T> cell{.step = {},
                                    .B = B,
                                    .H = H,
                                    .R = rows.total(),
                                    .stride_b = rows.stride_b,
                                    .D = r.D,
                                    .gx = r.gx,
                                    .gh = gh,
                                    .weights = {r.weights[0], r.weights[1]},
                                    .h = projected ? m : h,
                                    .h_real = h_real,
                                    .c = c,
                                    .y = projected ? nullptr : r.y,
                                    .s = r.s,
                                    .saved_c = r.c};
    const StoreOutput<T> output{
        .step = {}, .B = B, .P = P, .stride_b = rows.stride_b, .D = r.D, .h = h, .y = r.y};
    for (int64_t i = 0; i < rows.T; ++i) {
      this->multiply(queue, i,
                     Gemm<T, V>{.N = GH,
                                .K = P,
                                .A = {h, P, false, B * P},
                                .B = {this->W_hh, P, true, GH * P},
                                .C = {gh, GH, B * GH}});
      queue.launch(r.D, this->sequences(i), H, this->at_step(i, cell));
      if (!projected) continue;
      this->multiply(queue, i,
                     Gemm<T, T>{.N = P,
                                .K = H,
                                .A = {m, H, false, B * H},
                                .B = {this->W_hr, H, true, P * H},
                                .C = {h, P, B * P}});
      queue.launch(r.D, this->sequences(i), P, this->at_step(i, output));
    }
    for (int k = 0; k < C; ++k) {
      if (r.cn[k]) queue.launch(1, DB, H, Assign<V, T>{c + k * DB * H, r.cn[k], H});
    }
  }

 private:
  using Base::r, Base::rows, Base::P, Base::GH, Base::projected, Base::C;
  T* h;                 // [D, B, P], in the end h_n
  V* gh;                // [D, B, GH], the hidden state's share of the gates
  V* h_real = nullptr;  // [D, B, P], h before it was rounded, if the cell reads it
  V* c = nullptr;       // [C, D, B, H]
  T* m = nullptr;       // [D, B, H], o tanh(c) before the projection
};

// dh_rows, m: for dW_hr; null without a projection.
template <class Cell, class T>
class Backward : Sweep<Cell, T, BackwardRecurrence<T>> {
  using Base = Sweep<Cell, T, BackwardRecurrence<T>>;
  using typename Base::V;

 public:
  Backward(const BackwardRecurrence<T>& recurrence, const Rows& rows, int64_t P, T* dh_rows, T* m,
           Arena& arena)
      : Base(recurrence, rows, P, arena), dh_rows(dh_rows), m(m) {
    const int64_t DB = r.D * rows.B;
    dh = arena.take<V>(DB * P);
    dgh = arena.take<T>(DB * GH);
    if (C > 0) dc = arena.take<V>(C * DB * r.H);
    if (projected) {
      dh_step = arena.take<T>(DB * P);
      dm = arena.take<V>(DB * r.H);
    }
  }

  template <class Q>
  void run(Q& queue) {
    const int64_t B = rows.B, H = r.H, DB = r.D * B;
    this->stack_weights(queue);
    queue.launch(1, DB, P, Assign<T, V>{r.dhn, dh, P});
    for (int k = 0; k < C; ++k) queue.launch(1, DB, H, Assign<T, V>{r.dcn[k], dc + k * DB * H, H});
    const TakeGradient<T> take{.step = {},
                               .B = B,
                               .P = P,
                               .stride_b = rows.stride_b,
                               .D = r.D,
                               .dh = dh,
                               .dy = r.dy,
                               .dh_step = dh_step,
                               .dh_rows = dh_rows};
    CellBackward<Cell, T> cell{.step = {},
                               .before = {},
                               .B = B,
                               .H = H,
                               .R = rows.total(),
                               .stride_b = rows.stride_b,
                               .D = r.D,
                               .weights = {r.weights[0], r.weights[1]},
                               .s = r.s,
                               .saved_c = r.c,
                               .y = r.y,
                               .h0 = r.h0,
                               .c0 = {},
                               .dy = r.dy,
                               .dh = dh,
                               .dm = dm,
                               .dc = dc,
                               .dgx = r.dgx,
                               .dgh = r.dgh,
                               .dgh_step = dgh,
                               .du = r.du,
                               .m = m};
    std::copy_n(r.c0, C, cell.c0);
    for (int64_t i = rows.T - 1; i >= 0; --i) {
      if (projected) {
        queue.launch(r.D, this->sequences(i), P, this->at_step(i, take));
        this->multiply(queue, i,
                       Gemm<T, V>{.N = H,
                                  .K = P,
                                  .A = {dh_step, P, false, B * P},
                                  .B = {this->W_hr, H, false, P * H},
                                  .C = {dm, H, B * H}});
      }
      for (int d = 0; d < r.D; ++d) cell.before[d] = this->step_rows(d, i - 1);
      queue.launch(r.D, this->sequences(i), H, this->at_step(i, cell));
      if (i == 0 && !r.dh0) break;
      this->multiply(queue, i,
                     Gemm<T, V>{.N = P,
                                .K = GH,
                                .A = {dgh, GH, false, B * GH},
                                .B = {this->W_hh, P, false, GH * P},
                                .C = {dh, P, B * P},
                                .add = true});
    }
    if (r.dh0) queue.launch(1, DB, P, Assign<V, T>{dh, r.dh0, P});
    for (int k = 0; k < C; ++k) {
      if (r.dc0[k]) queue.launch(1, DB, H, Assign<V, T>{dc + k * DB * H, r.dc0[k], H});
    }
  }

 private:
  using Base::r, Base::rows, Base::P, Base::GH, Base::projected, Base::C;
  T *dh_rows, *m;        // [R, D*P], [R, D*H]
  V* dh;                 // [D, B, P], the gradient of the state h
  T* dgh;                // [D, B, GH], a step's gate gradients, of the hidden state's shares
  V* dc = nullptr;       // [C, D, B, H]
  T* dh_step = nullptr;  // [D, B, P], the gradient of a step's h
  V* dm = nullptr;       // [D, B, H], and of what was projected
};

}  // namespace fastrnn::cuda::stepwise
