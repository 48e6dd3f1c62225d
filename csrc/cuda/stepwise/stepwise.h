#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/arena.h"
#include "cuda/gemm.h"
#include "cuda/stepwise/cell_kernels.h"
#include "cuda/stepwise/normalised_kernels.h"

// Stepwise plans: for each step a product and a pointwise kernel, both directions side by side. They run on any device
// and at any size, with every cell, packed input, projections, zoneout and dropout of h. A cell with late gates has two
// products and two kernels; one that is normalised has more kernels, as sums over rows come between. Each sequence has its own place in the operands and results
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
  static constexpr int C = Cell::cell_states, G = Cell::gates;

  StepwiseBase(const Params& recurrence, const Rows& rows, int64_t P, Arena& arena)
      : r_(recurrence),
        rows_(rows),
        P_(P),
        GH_(G * r_.H),
        EH_(GH_ - Cell::late_gates * r_.H),
        projected_(r_.weights[0].W_hr != nullptr) {
    if (r_.D == 2) {
      if (Cell::has_W_hh) stacked_W_hh_ = arena.take<T>(2 * GH_ * P_);
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
      if (Cell::has_W_hh) queue.copy(stacked_W_hh_ + d * GH_ * P_, r_.weights[d].W_hh, GH_ * P_);
      if (projected_) queue.copy(stacked_W_hr_ + d * P_ * r_.H, r_.weights[d].W_hr, P_ * r_.H);
    }
    W_hh_ = stacked_W_hh_;
    W_hr_ = stacked_W_hr_;
  }

  StepLayout<Cell, T> layout() const {
    return {.step = {},
            .B = rows_.B,
            .H = r_.H,
            .R = rows_.total(),
            .stride_b = rows_.stride_b,
            .D = r_.D,
            .weights = {r_.weights[0], r_.weights[1]},
            .noise = r_.noise};
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
  // Calls body(d, b, column) for the sequences of step i.
  template <class Q, class Body>
  void launch(Q& queue, int64_t i, int64_t columns, Body body) const {
    for (int d = 0; d < r_.D; ++d) body.step[d] = step_rows(d, i);
    queue.launch(r_.D, sequences(i), columns, body);
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
  const int64_t EH_;  // rows of W_hh for the gates that are not late
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
    const int64_t DB = r_.D * rows_.B, states = DB * r_.H;
    h_ = r_.hn ? r_.hn : arena.take<T>(DB * P_);
    if (r_.noise.mask) dropped_ = arena.take<T>(DB * P_);
    if (Cell::has_W_hh) gh_ = arena.take<V>(DB * GH_);
    if ((Cell::reads_h || r_.noise.zoneout[0] > 0) && !std::is_same_v<T, V>) h_real_ = arena.take<V>(DB * P_);
    if (C > 0) c_ = arena.take<V>(C * states);
    if (projected_) m_ = arena.take<T>(states);
    if (Cell::late_gates > 0) v_ = arena.take<T>(states);
    if (Cell::normalised) {
      moments_ = arena.take<V>(DB * 2 * kRowLanes);
      c_computed_ = arena.take<V>(C * states);
    }
    if (Cell::late_gates > 0 || (Cell::normalised && C > 0)) kept_ = arena.take<V>(Cell::saved * states);
  }

  template <class Q>
  void run(Q& queue) {
    const int64_t B = rows_.B, H = r_.H, DB = r_.D * B;
    this->stack_weights(queue);
    queue.launch(1, DB, P_, Assign<T, T>{r_.h0, h_, P_});
    if (dropped_) queue.launch(1, DB, P_, Drop<T>{h_, r_.noise.mask, dropped_, P_});
    if (h_real_) queue.launch(1, DB, P_, Assign<T, V>{r_.h0, h_real_, P_});
    for (int k = 0; k < C; ++k) queue.launch(1, DB, H, Assign<T, V>{r_.c0[k], c_ + k * DB * H, H});
    const StoreOutput<T> output{.step = {},
                                .B = B,
                                .P = P_,
                                .stride_b = rows_.stride_b,
                                .D = r_.D,
                                .h = h_,
                                .mask = r_.noise.mask,
                                .dropped = dropped_,
                                .y = r_.y};
    for (int64_t i = 0; i < rows_.T; ++i) {
      if (Cell::has_W_hh) multiply_gates(queue, i, dropped_ ? dropped_ : h_, 0, EH_);
      compute_cells(queue, i);
      if (!projected_) continue;
      this->multiply(queue, i,
                     Gemm<T, T>{.N = P_,
                                .K = H,
                                .A = {m_, H, false, B * H},
                                .B = {this->W_hr_, H, true, P_ * H},
                                .C = {h_, P_, B * P_}});
      this->launch(queue, i, P_, output);
    }
    for (int k = 0; k < C; ++k) {
      if (r_.cn[k]) queue.launch(1, DB, H, Assign<V, T>{c_ + k * DB * H, r_.cn[k], H});
    }
  }

 private:
  // The hidden state's share of some gates: `count` rows of W_hh from `first` on, times `read` [D, B, P].
  template <class Q>
  void multiply_gates(Q& queue, int64_t i, const T* read, int64_t first, int64_t count) {
    const int64_t B = rows_.B;
    this->multiply(queue, i,
                   Gemm<T, V>{.N = count,
                              .K = P_,
                              .A = {read, P_, false, B * P_},
                              .B = {this->W_hh_ + first * P_, P_, true, GH_ * P_},
                              .C = {gh_ + first, GH_, B * GH_}});
  }

  template <class Q>
  void compute_cells(Q& queue, int64_t i) {
    const int64_t H = r_.H;
    ForwardStep<Cell, T> step{};
    static_cast<StepLayout<Cell, T>&>(step) = this->layout();
    step.gx = r_.gx;
    step.gh = gh_;
    step.h = projected_ ? m_ : h_;
    step.dropped = projected_ ? nullptr : dropped_;
    step.h_real = h_real_;
    step.c = c_;
    step.y = projected_ ? nullptr : r_.y;
    step.s = r_.s;
    step.saved_c = r_.c;
    step.computed = r_.computed;
    if constexpr (Cell::late_gates > 0) {
      this->launch(queue, i, H, EarlyForward<Cell, T>{step, kept_, v_});
      multiply_gates(queue, i, v_, EH_, GH_ - EH_);
      this->launch(queue, i, H, LateForward<Cell, T>{step, kept_});
    } else if constexpr (Cell::normalised) {
      find_moments(queue, i, gh_, GH_);
      this->launch(queue, i, H, NormalisedForward<Cell, T>{step, moments_, c_computed_, kept_});
      if constexpr (C > 0) {
        find_moments(queue, i, c_computed_, H);
        this->launch(queue, i, H, NormalisedOutput<Cell, T>{step, moments_, c_computed_, kept_});
      }
    } else {
      this->launch(queue, i, H, CellForward<Cell, T>{step});
    }
  }

  template <class Q>
  void find_moments(Q& queue, int64_t i, const V* from, int64_t width) {
    this->launch(
        queue, i, kRowLanes,
        RowMoments<V>{
            .step = {}, .rows = rows_.B, .width = width, .stride = width, .from = from, .moments = moments_});
  }

  using Base::r_, Base::rows_, Base::P_, Base::GH_, Base::EH_, Base::projected_, Base::C;
  T* h_;                     // [D, B, P], in the end h_n
  T* dropped_ = nullptr;     // [D, B, P], h times the dropout mask
  V* gh_ = nullptr;          // [D, B, GH], the hidden state's share of the gates
  V* h_real_ = nullptr;      // [D, B, P], h before it was rounded, if the cell or zoneout reads it
  V* c_ = nullptr;           // [C, D, B, H]
  T* m_ = nullptr;           // [D, B, H], o tanh(c) before the projection
  T* v_ = nullptr;           // [D, B, H], what the late gates' product reads
  V* kept_ = nullptr;        // [S, D, B, H], between two kernels of a step
  V* moments_ = nullptr;     // [D, B, 2, kRowLanes]
  V* c_computed_ = nullptr;  // [C, D, B, H], c' before zoneout
};

template <class Cell, class T>
class Backward : StepwiseBase<Cell, T, BackwardRecurrence<T>> {
  using Base = StepwiseBase<Cell, T, BackwardRecurrence<T>>;
  using typename Base::V;

 public:
  Backward(const BackwardRecurrence<T>& recurrence, const Rows& rows, int64_t P, Arena& arena)
      : Base(recurrence, rows, P, arena) {
    const int64_t DB = r_.D * rows_.B, states = DB * r_.H;
    dh_ = arena.take<V>(DB * P_);
    if (Cell::has_W_hh) dgh_ = arena.take<T>(DB * GH_);
    if (Cell::has_W_hh && r_.noise.mask) product_ = arena.take<V>(DB * P_);
    if (C > 0) dc_ = arena.take<V>(C * states);
    if (projected_) {
      dh_step_ = arena.take<T>(DB * P_);
      dm_ = arena.take<V>(states);
    }
    if (Cell::late_gates > 0) dv_ = arena.take<V>(states);
    if (Cell::normalised) {
      const int64_t of_rows = r_.D * rows_.total() * 2 * kRowLanes;
      moments_ = arena.take<V>(of_rows);
      if (C > 0) moments_c_ = arena.take<V>(of_rows);
      terms_ = arena.take<V>(2 * DB * GH_);
      sums_ = arena.take<V>(DB * 2 * kRowLanes);
    }
  }

  template <class Q>
  void run(Q& queue) {
    const int64_t B = rows_.B, H = r_.H, DB = r_.D * B;
    this->stack_weights(queue);
    queue.launch(1, DB, P_, Assign<T, V>{r_.dhn, dh_, P_});
    for (int k = 0; k < C; ++k) queue.launch(1, DB, H, Assign<T, V>{r_.dcn[k], dc_ + k * DB * H, H});
    if constexpr (Cell::normalised) find_all_moments(queue);
    const TakeGradient<T> take{.step = {},
                               .B = B,
                               .P = P_,
                               .stride_b = rows_.stride_b,
                               .D = r_.D,
                               .dh = dh_,
                               .dy = r_.dy,
                               .dh_step = dh_step_,
                               .dh_rows = r_.dh_rows};
    for (int64_t i = rows_.T - 1; i >= 0; --i) {
      if (projected_) {
        this->launch(queue, i, P_, take);
        this->multiply(queue, i,
                       Gemm<T, V>{.N = H,
                                  .K = P_,
                                  .A = {dh_step_, P_, false, B * P_},
                                  .B = {this->W_hr_, H, false, P_ * H},
                                  .C = {dm_, H, B * H}});
      }
      compute_cells(queue, i);
      if (!Cell::has_W_hh || (i == 0 && !r_.dh0)) continue;
      multiply_gates(queue, i, 0, EH_, product_ ? product_ : dh_, !product_);
      if (product_) this->launch(queue, i, P_, AddDropped<T>{{}, B, P_, product_, r_.noise.mask, dh_});
    }
    if (r_.dh0) queue.launch(1, DB, P_, Assign<V, T>{dh_, r_.dh0, P_});
    for (int k = 0; k < C; ++k) {
      if (r_.dc0[k]) queue.launch(1, DB, H, Assign<V, T>{dc_ + k * DB * H, r_.dc0[k], H});
    }
  }

 private:
  // to [D, B, P] (+)= the gradients of some gates, `count` from `first` on, times their rows of W_hh.
  template <class Q>
  void multiply_gates(Q& queue, int64_t i, int64_t first, int64_t count, V* to, bool add) {
    const int64_t B = rows_.B;
    this->multiply(queue, i,
                   Gemm<T, V>{.N = P_,
                              .K = count,
                              .A = {dgh_ + first, GH_, false, B * GH_},
                              .B = {this->W_hh_ + first * P_, P_, false, GH_ * P_},
                              .C = {to, P_, B * P_},
                              .add = add});
  }

  template <class Q>
  void compute_cells(Q& queue, int64_t i) {
    const int64_t H = r_.H;
    BackwardStep<Cell, T> step{};
    static_cast<StepLayout<Cell, T>&>(step) = this->layout();
    step.s = r_.s;
    step.saved_c = r_.c;
    step.computed = r_.computed;
    step.y = r_.y;
    step.h0 = r_.h0;
    step.dy = r_.dy;
    step.dh = dh_;
    step.dm = dm_;
    step.dc = dc_;
    step.dgx = r_.dgx;
    step.dgh = r_.dgh;
    step.dgh_step = dgh_;
    step.du = r_.du;
    std::copy_n(r_.c0, C, step.c0);
    for (int d = 0; d < r_.D; ++d) step.before[d] = this->step_rows(d, i - 1);
    if constexpr (Cell::late_gates > 0) {
      this->launch(queue, i, H, LateBackward<Cell, T>{step});
      multiply_gates(queue, i, EH_, GH_ - EH_, dv_, false);
      this->launch(queue, i, H, EarlyBackward<Cell, T>{step, dv_, r_.v});
    } else if constexpr (Cell::normalised) {
      const NormalisedStep<Cell, T> normalised{step, moments_, moments_c_, sums_, terms_};
      if constexpr (C > 0) {
        this->launch(queue, i, H, OutputBackward<Cell, T>{normalised});
        sum_terms(queue, i, H);
      }
      this->launch(queue, i, H, NormalisedBackward<Cell, T>{normalised});
      sum_terms(queue, i, GH_);
      this->launch(queue, i, H, ProductBackward<Cell, T>{normalised});
    } else {
      this->launch(queue, i, H, CellBackward<Cell, T>{step, r_.m});
    }
  }

  // The moments of all rows, from what the forward saved.
  template <class Q>
  void find_all_moments(Q& queue) {
    const int64_t H = r_.H, R = rows_.total();
    RowMoments<V> of_rows{.step = {{0, R}, {0, R}},
                          .rows = R,
                          .width = GH_,
                          .stride = Cell::saved * H,
                          .from = r_.s + Cell::Inner::saved * H,
                          .moments = moments_};
    queue.launch(r_.D, R, kRowLanes, of_rows);
    if constexpr (C > 0) {
      of_rows.width = of_rows.stride = H;
      of_rows.from = r_.computed ? r_.computed : r_.c;
      of_rows.moments = moments_c_;
      queue.launch(r_.D, R, kRowLanes, of_rows);
    }
  }
  template <class Q>
  void sum_terms(Q& queue, int64_t i, int64_t width) {
    this->launch(
        queue, i, kRowLanes,
        RowSums<V>{.step = {}, .B = rows_.B, .width = width, .D = r_.D, .terms = terms_, .sums = sums_});
  }

  using Base::r_, Base::rows_, Base::P_, Base::GH_, Base::EH_, Base::projected_, Base::C;
  V* dh_;                 // [D, B, P], the gradient of the state h
  T* dgh_ = nullptr;      // [D, B, GH], a step's gradients of the hidden state's shares
  V* product_ = nullptr;  // [D, B, P], their product with W_hh, where a dropout mask follows
  V* dc_ = nullptr;       // [C, D, B, H]
  T* dh_step_ = nullptr;  // [D, B, P], the gradient of a step's h
  V* dm_ = nullptr;       // [D, B, H], the gradient of what was projected
  V* dv_ = nullptr;       // [D, B, H], that of what the late gates multiply
  V *moments_ = nullptr, *moments_c_ = nullptr;  // [D, R, 2, kRowLanes], of the product and of c
  V* terms_ = nullptr;                           // [2, D, B, GH]
  V* sums_ = nullptr;                            // [D, B, 2, kRowLanes]
};

}  // namespace fastrnn::cuda::stepwise
