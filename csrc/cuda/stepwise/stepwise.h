#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/arena.h"
#include "cuda/gemm.h"
#include "cuda/stepwise/cell_kernels.h"

// Stepwise plans: for each step a product and a pointwise kernel, both directions side by side. They run on any device
// and at any size, with packed input and with projections. Each sequence has its own place in the operands and results
// of the product. So a step of a packed batch takes the first n sequences and does not touch the others.
//
// Q is the queue that the work goes to: the device's (csrc/cuda/queue.h), or loops on the host (tests/csrc).
//   launch(depth, rows, columns, f)  calls f(i, row, column) for all of them
//   multiply(gemm)                   csrc/cuda/gemm.h
//   copy(to, from, count)

namespace fastrnn::cuda::stepwise {

// What the forward and the backward share. P = H without a projection.
template <class Cell, class T, class Params>
class StepwiseBase {
 protected:
  using V = Real<T>;
  static constexpr int C = Cell::cell_states;

  StepwiseBase(const Params& recurrence, const Rows& rows, int64_t P, Arena& arena)
      : r_(recurrence),
        rows_(rows),
        P_(P),
        GH_(Cell::gates * r_.H),
        projected_(r_.weights[0].W_hr != nullptr) {
    if (r_.D == 2) {
      stacked_W_hh_ = arena.take<T>(2 * GH_ * P_);
      if (projected_) stacked_W_hr_ = arena.take<T>(2 * P_ * r_.H);
    }
  }

  // Copies the weights of two directions side by side, so that one batch of products can read them.
  template <class Q>
  void stack_weights(Q& queue) {
    if (r_.D == 1) {
      W_hh_ = r_.weights[0].W_hh;
      W_hr_ = r_.weights[0].W_hr;
      return;
    }
    for (int d = 0; d < 2; ++d) {
      queue.copy(stacked_W_hh_ + d * GH_ * P_, r_.weights[d].W_hh, GH_ * P_);
      if (projected_) queue.copy(stacked_W_hr_ + d * P_ * r_.H, r_.weights[d].W_hr, P_ * r_.H);
    }
    W_hh_ = stacked_W_hh_;
    W_hr_ = stacked_W_hr_;
  }

  // The rows of step i of direction d. There are none before the first step.
  StepRows step_rows(int d, int64_t i) const {
    if (i < 0) return {0, 0};
    const int64_t t = d == 0 ? i : rows_.T - 1 - i;
    return {rows_.first(t), rows_.n(t)};
  }
  // The number of sequences in step i, of the direction that has more.
  int64_t sequences(int64_t i) const {
    return r_.D == 1 || step_rows(0, i).n > step_rows(1, i).n ? step_rows(0, i).n : step_rows(1, i).n;
  }
  template <class Body>
  Body at_step(int64_t i, Body body) const {
    for (int d = 0; d < r_.D; ++d) body.step[d] = step_rows(d, i);
    return body;
  }

  // C (+)= A B on the sequences of step i, for each direction. Both directions are one batch, unless they have
  // different numbers of sequences.
  template <class Q, class TC>
  void multiply(Q& queue, int64_t i, Gemm<T, TC> gemm) const {
    gemm.batch = r_.D;
    gemm.M = step_rows(0, i).n;
    if (r_.D == 1 || gemm.M == step_rows(1, i).n) return queue.multiply(gemm);
    gemm.batch = 1;
    queue.multiply(gemm);
    gemm.M = step_rows(1, i).n;
    gemm.A.data += gemm.A.stride;
    gemm.B.data += gemm.B.stride;
    gemm.C.data += gemm.C.stride;
    queue.multiply(gemm);
  }

  const Params r_;
  const Rows rows_;  // with arrays on the host
  const int64_t P_, GH_;
  const bool projected_;
  const T *W_hh_ = nullptr, *W_hr_ = nullptr;  // [D, GH, P], [D, P, H]

 private:
  T *stacked_W_hh_ = nullptr, *stacked_W_hr_ = nullptr;
};

template <class Cell, class T>
class Forward : StepwiseBase<Cell, T, Recurrence<T>> {
  using Base = StepwiseBase<Cell, T, Recurrence<T>>;
  using typename Base::V;

 public:
  Forward(const Recurrence<T>& recurrence, const Rows& rows, int64_t P, Arena& arena)
      : Base(recurrence, rows, P, arena) {
    const int64_t DB = r_.D * rows_.B;
    h_ = r_.hn ? r_.hn : arena.take<T>(DB * P_);
    gh_ = arena.take<V>(DB * GH_);
    if (Cell::reads_h && !std::is_same_v<T, V>) h_real_ = arena.take<V>(DB * P_);
    if (C > 0) c_ = arena.take<V>(C * DB * r_.H);
    if (projected_) m_ = arena.take<T>(DB * r_.H);
  }

  template <class Q>
  void run(Q& queue) {
    const int64_t B = rows_.B, H = r_.H, DB = r_.D * B;
    this->stack_weights(queue);
    queue.launch(1, DB, P_, Assign<T, T>{r_.h0, h_, P_});
    if (h_real_) queue.launch(1, DB, P_, Assign<T, V>{r_.h0, h_real_, P_});
    for (int k = 0; k < C; ++k) queue.launch(1, DB, H, Assign<T, V>{r_.c0[k], c_ + k * DB * H, H});
    const CellForward<Cell, T> cell{.step = {},
                                    .B = B,
                                    .H = H,
                                    .R = rows_.total(),
                                    .stride_b = rows_.stride_b,
                                    .D = r_.D,
                                    .gx = r_.gx,
                                    .gh = gh_,
                                    .weights = {r_.weights[0], r_.weights[1]},
                                    .h = projected_ ? m_ : h_,
                                    .h_real = h_real_,
                                    .c = c_,
                                    .y = projected_ ? nullptr : r_.y,
                                    .s = r_.s,
                                    .saved_c = r_.c};
    const StoreOutput<T> output{
        .step = {}, .B = B, .P = P_, .stride_b = rows_.stride_b, .D = r_.D, .h = h_, .y = r_.y};
    for (int64_t i = 0; i < rows_.T; ++i) {
      this->multiply(queue, i,
                     Gemm<T, V>{.N = GH_,
                                .K = P_,
                                .A = {h_, P_, false, B * P_},
                                .B = {this->W_hh_, P_, true, GH_ * P_},
                                .C = {gh_, GH_, B * GH_}});
      queue.launch(r_.D, this->sequences(i), H, this->at_step(i, cell));
      if (!projected_) continue;
      this->multiply(queue, i,
                     Gemm<T, T>{.N = P_,
                                .K = H,
                                .A = {m_, H, false, B * H},
                                .B = {this->W_hr_, H, true, P_ * H},
                                .C = {h_, P_, B * P_}});
      queue.launch(r_.D, this->sequences(i), P_, this->at_step(i, output));
    }
    for (int k = 0; k < C; ++k) {
      if (r_.cn[k]) queue.launch(1, DB, H, Assign<V, T>{c_ + k * DB * H, r_.cn[k], H});
    }
  }

 private:
  using Base::r_, Base::rows_, Base::P_, Base::GH_, Base::projected_, Base::C;
  T* h_;                 // [D, B, P], in the end h_n
  V* gh_;                // [D, B, GH], the hidden state's share of the gates
  V* h_real_ = nullptr;  // [D, B, P], h before it was rounded, if the cell reads it
  V* c_ = nullptr;       // [C, D, B, H]
  T* m_ = nullptr;       // [D, B, H], o tanh(c) before the projection
};

// dh_rows and m are for dW_hr. They are null without a projection.
template <class Cell, class T>
class Backward : StepwiseBase<Cell, T, BackwardRecurrence<T>> {
  using Base = StepwiseBase<Cell, T, BackwardRecurrence<T>>;
  using typename Base::V;

 public:
  Backward(const BackwardRecurrence<T>& recurrence, const Rows& rows, int64_t P, T* dh_rows, T* m,
           Arena& arena)
      : Base(recurrence, rows, P, arena), dh_rows_(dh_rows), m_(m) {
    const int64_t DB = r_.D * rows_.B;
    dh_ = arena.take<V>(DB * P_);
    dgh_ = arena.take<T>(DB * GH_);
    if (C > 0) dc_ = arena.take<V>(C * DB * r_.H);
    if (projected_) {
      dh_step_ = arena.take<T>(DB * P_);
      dm_ = arena.take<V>(DB * r_.H);
    }
  }

  template <class Q>
  void run(Q& queue) {
    const int64_t B = rows_.B, H = r_.H, DB = r_.D * B;
    this->stack_weights(queue);
    queue.launch(1, DB, P_, Assign<T, V>{r_.dhn, dh_, P_});
    for (int k = 0; k < C; ++k) queue.launch(1, DB, H, Assign<T, V>{r_.dcn[k], dc_ + k * DB * H, H});
    const TakeGradient<T> take{.step = {},
                               .B = B,
                               .P = P_,
                               .stride_b = rows_.stride_b,
                               .D = r_.D,
                               .dh = dh_,
                               .dy = r_.dy,
                               .dh_step = dh_step_,
                               .dh_rows = dh_rows_};
    CellBackward<Cell, T> cell{.step = {},
                               .before = {},
                               .B = B,
                               .H = H,
                               .R = rows_.total(),
                               .stride_b = rows_.stride_b,
                               .D = r_.D,
                               .weights = {r_.weights[0], r_.weights[1]},
                               .s = r_.s,
                               .saved_c = r_.c,
                               .y = r_.y,
                               .h0 = r_.h0,
                               .c0 = {},
                               .dy = r_.dy,
                               .dh = dh_,
                               .dm = dm_,
                               .dc = dc_,
                               .dgx = r_.dgx,
                               .dgh = r_.dgh,
                               .dgh_step = dgh_,
                               .du = r_.du,
                               .m = m_};
    std::copy_n(r_.c0, C, cell.c0);
    for (int64_t i = rows_.T - 1; i >= 0; --i) {
      if (projected_) {
        queue.launch(r_.D, this->sequences(i), P_, this->at_step(i, take));
        this->multiply(queue, i,
                       Gemm<T, V>{.N = H,
                                  .K = P_,
                                  .A = {dh_step_, P_, false, B * P_},
                                  .B = {this->W_hr_, H, false, P_ * H},
                                  .C = {dm_, H, B * H}});
      }
      for (int d = 0; d < r_.D; ++d) cell.before[d] = this->step_rows(d, i - 1);
      queue.launch(r_.D, this->sequences(i), H, this->at_step(i, cell));
      if (i == 0 && !r_.dh0) break;
      this->multiply(queue, i,
                     Gemm<T, V>{.N = P_,
                                .K = GH_,
                                .A = {dgh_, GH_, false, B * GH_},
                                .B = {this->W_hh_, P_, false, GH_ * P_},
                                .C = {dh_, P_, B * P_},
                                .add = true});
    }
    if (r_.dh0) queue.launch(1, DB, P_, Assign<V, T>{dh_, r_.dh0, P_});
    for (int k = 0; k < C; ++k) {
      if (r_.dc0[k]) queue.launch(1, DB, H, Assign<V, T>{dc_ + k * DB * H, r_.dc0[k], H});
    }
  }

 private:
  using Base::r_, Base::rows_, Base::P_, Base::GH_, Base::projected_, Base::C;
  T *dh_rows_, *m_;       // [R, D*P], [R, D*H]
  V* dh_;                 // [D, B, P], the gradient of the state h
  T* dgh_;                // [D, B, GH], a step's gradients of the hidden state's shares
  V* dc_ = nullptr;       // [C, D, B, H]
  T* dh_step_ = nullptr;  // [D, B, P], the gradient of a step's h
  V* dm_ = nullptr;       // [D, B, H], the gradient of what was projected
};

}  // namespace fastrnn::cuda::stepwise
