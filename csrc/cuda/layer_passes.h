#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <type_traits>
#include <vector>

#include "cuda/plan.h"
#include "cuda/reductions.h"
#include "cuda/stepwise/stepwise.h"

// Forward and backward of a layer: the recurrence, and the products over all rows before and after it. The code is
// written over a queue Q (csrc/cuda/stepwise/stepwise.h), so that the host can run it too. For the persistent kernels
// the queue has two more functions:
//   recurrence_bytes(plan)                           the scratch memory that a recurrence needs (static)
//   run_recurrence<Cell>(plan, recurrence, scratch)  forward or backward, by the type of the recurrence

namespace fastrnn::cuda {

// Copies a few numbers of the host, which travel as arguments of the kernel. So nothing has to outlive the call, and
// a captured graph has its own copy.
struct Upload {
  static constexpr int64_t kMost = 448;
  int64_t value[kMost];
  int64_t* to;

  FASTRNN_INLINE void operator()(int64_t, int64_t, int64_t i) const { to[i] = value[i]; }
};

// The rows of a batch with their arrays on the device. The constructor takes the buffers, `write` fills them.
class RowsOnDevice {
 public:
  RowsOnDevice(const Rows& rows, Arena& arena) : rows_(rows) {
    if (!rows.packed()) return;
    lengths_ = arena.take<int64_t>(rows.B);
    offsets_ = arena.take<int64_t>(rows.T + 1);
  }

  DeviceRows get() const { return {rows_.T, rows_.B, rows_.stride_t, rows_.stride_b, lengths_, offsets_}; }

  template <class Q>
  void write(Q& queue) const {
    if (!rows_.packed()) return;
    std::vector<int64_t> lengths(rows_.B);
    for (int64_t t = 0; t < rows_.T; ++t) {  // later steps have no more sequences
      const int64_t next = t + 1 < rows_.T ? rows_.n(t + 1) : 0;
      std::fill(lengths.begin() + next, lengths.begin() + rows_.n(t), t + 1);
    }
    upload(queue, lengths.data(), rows_.B, lengths_);
    upload(queue, rows_.offsets, rows_.T + 1, offsets_);
  }

 private:
  template <class Q>
  static void upload(Q& queue, const int64_t* from, int64_t count, int64_t* to) {
    for (int64_t first = 0; first < count; first += Upload::kMost) {
      const int64_t n = std::min(Upload::kMost, count - first);
      Upload part{.value = {}, .to = to + first};
      std::copy_n(from + first, n, part.value);
      queue.launch(1, 1, n, part);
    }
  }

  const Rows rows_;
  int64_t *lengths_ = nullptr, *offsets_ = nullptr;
};

// W_ih of both directions, one below the other.
template <class T>
class InputWeights {
 public:
  InputWeights(const LayerParams<T>& p, int64_t GH, Arena& arena) : p_(p), GH_(GH) {
    if (p.D == 2 && p.weights[0].W_ih) stacked_ = arena.take<T>(2 * GH * p.I);
  }

  template <class Q>
  const T* stack(Q& queue) const {  // [D*GH, I]
    if (p_.D == 1) return p_.weights[0].W_ih;
    for (int d = 0; d < 2; ++d) queue.copy(stacked_ + d * GH_ * p_.I, p_.weights[d].W_ih, GH_ * p_.I);
    return stacked_;
  }

 private:
  const LayerParams<T>& p_;
  const int64_t GH_;
  T* stacked_ = nullptr;
};

// Sets the fields that the recurrences of both passes have.
template <class R, class Params>
void fill(R& r, const Params& p, const DeviceRows& rows) {
  r.rows = rows;
  r.H = p.H;
  r.D = p.D;
  std::copy_n(p.weights, 2, r.weights);
  r.h0 = p.h0;
  std::copy_n(p.c0, kMostCellStates, r.c0);
  r.y = p.y;
  r.s = p.s;
  r.c = p.c;
  r.noise = p.noise;
  r.computed = p.computed;
}

template <class Q, class Cell, class T>
class LayerForward {
 public:
  LayerForward(const ForwardParams<T>& params, const Plan& plan, Arena& arena)
      : p_(params),
        plan_(plan),
        GH_(Cell::gates * p_.H),
        R_(p_.rows.total()),
        rows_(p_.rows, arena),
        W_ih_(p_, GH_, arena) {
    fill(recurrence_, p_, rows_.get());
    if constexpr (!Cell::has_W_ih && std::is_same_v<T, Real<T>>) {
      recurrence_.gx = p_.x;
    } else {
      recurrence_.gx = gx_ = arena.take<Real<T>>(R_ * p_.D * GH_);
    }
    recurrence_.hn = p_.hn;
    std::copy_n(p_.cn, kMostCellStates, recurrence_.cn);
    if (plan_.kind == Kind::stepwise) {
      stepwise_.emplace(recurrence_, p_.rows, p_.P, arena);
    } else {
      scratch_ = arena.take<char>(Q::recurrence_bytes(plan_));
    }
  }

  void run(Q& queue) {
    rows_.write(queue);
    if constexpr (Cell::has_W_ih) {
      queue.multiply(Gemm<T, Real<T>>{.M = R_,
                                      .N = p_.D * GH_,
                                      .K = p_.I,
                                      .A = {p_.x, p_.I},
                                      .B = {W_ih_.stack(queue), p_.I, true},
                                      .C = {gx_, p_.D * GH_}});
    } else if (gx_) {
      queue.launch(1, R_, p_.D * GH_, Assign<T, Real<T>>{p_.x, gx_, p_.D * GH_});
    }
    if (stepwise_) {
      stepwise_->run(queue);
    } else {
      queue.template run_recurrence<Cell>(plan_, recurrence_, scratch_);
    }
    if (p_.y_copy) queue.copy(p_.y_copy, p_.y, R_ * p_.D * p_.P);
  }

 private:
  const ForwardParams<T>& p_;
  const Plan plan_;
  const int64_t GH_, R_;
  const RowsOnDevice rows_;
  const InputWeights<T> W_ih_;
  Real<T>* gx_ = nullptr;  // [R, D*GH], unless x has it
  Recurrence<T> recurrence_{};
  std::optional<stepwise::Forward<Cell, T>> stepwise_;  // for a stepwise plan
  void* scratch_ = nullptr;                             // for the other kinds
};

template <class Q, class Cell, class T>
class LayerBackward {
 public:
  LayerBackward(const BackwardParams<T>& params, const Plan& plan, Arena& arena)
      : p_(params),
        plan_(plan),
        GH_(Cell::gates * p_.H),
        R_(p_.rows.total()),
        // About as many strips as rows in a strip: then both passes of a column sum are short.
        strip_(std::max<int64_t>(16, static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(R_)))))),
        strips_((R_ + strip_ - 1) / strip_),
        rows_(p_.rows, arena),
        W_ih_(p_, GH_, arena) {
    const int64_t width = p_.D * GH_;
    dgx_ = !Cell::has_W_ih && p_.dx ? p_.dx : arena.take<T>(R_ * width);
    dgh_ = has_own_dgh<Cell> ? arena.take<T>(R_ * width) : dgx_;
    if (p_.dweights[0].W_hh || p_.dweights[1].W_hh) {
      h_prev_ = arena.take<T>(R_ * p_.D * p_.P);
      if (Cell::late_gates > 0) v_ = arena.take<T>(R_ * p_.D * p_.H);
    }
    sums_ = arena.take<Real<T>>(strips_ * std::max(width, p_.D * U * p_.H));
    if (U > 0) du_ = arena.take<T>(R_ * p_.D * U * p_.H);
    if (p_.weights[0].W_hr) {
      dh_rows_ = arena.take<T>(R_ * p_.D * p_.P);
      m_ = arena.take<T>(R_ * p_.D * p_.H);
    }
    fill(recurrence_, p_, rows_.get());
    recurrence_.dy = p_.dy;
    recurrence_.dhn = p_.dhn;
    std::copy_n(p_.dcn, kMostCellStates, recurrence_.dcn);
    recurrence_.dgx = dgx_;
    recurrence_.dgh = dgh_;
    recurrence_.du = du_;
    recurrence_.dh_rows = dh_rows_;
    recurrence_.m = m_;
    recurrence_.v = v_;
    recurrence_.dh0 = p_.dh0;
    std::copy_n(p_.dc0, kMostCellStates, recurrence_.dc0);
    if (plan_.kind == Kind::stepwise) {
      stepwise_.emplace(recurrence_, p_.rows, p_.P, arena);
    } else {
      scratch_ = arena.take<char>(Q::recurrence_bytes(plan_));
    }
  }

  void run(Q& queue) {
    rows_.write(queue);
    if (stepwise_) {
      stepwise_->run(queue);
    } else {
      queue.template run_recurrence<Cell>(plan_, recurrence_, scratch_);
    }
    if (p_.dx && Cell::has_W_ih) {
      queue.multiply(Gemm<T, T>{.M = R_,
                                .N = p_.I,
                                .K = p_.D * GH_,
                                .A = {dgx_, p_.D * GH_},
                                .B = {W_ih_.stack(queue), p_.I},
                                .C = {p_.dx, p_.I}});
    }
    if (h_prev_) {
      queue.launch(p_.rows.T, p_.rows.B, p_.D * p_.P,
                   GatherPrevious<T>{rows_.get(), p_.P, p_.D, p_.y, p_.h0, p_.noise.mask, h_prev_});
    }
    const int64_t EH = GH_ - Cell::late_gates * p_.H;
    for (int d = 0; d < p_.D; ++d) {
      const WeightGradients<T>& dw = p_.dweights[d];
      // Columns of direction d, which has `width` of them.
      const auto block = [&](const T* rows, int64_t width, int64_t first, int64_t count) -> Columns {
        return {rows, d * width + first, count, p_.D * width};
      };
      sum_products(queue, block(dgx_, GH_, 0, GH_), {p_.x, 0, p_.I, p_.I}, dw.W_ih);
      sum_products(queue, block(dgh_, GH_, 0, EH), block(h_prev_, p_.P, 0, p_.P), dw.W_hh);
      if (EH < GH_ && dw.W_hh) {
        sum_products(queue, block(dgh_, GH_, EH, GH_ - EH), block(v_, p_.H, 0, p_.H), dw.W_hh + EH * p_.P);
      }
      sum_products(queue, block(dh_rows_, p_.P, 0, p_.P), block(m_, p_.H, 0, p_.H), dw.W_hr);
    }
    sum_vectors(queue);
  }

 private:
  static constexpr int U = Cell::unit_vectors;

  // `count` columns from `first` on of a matrix with R rows of `ld` numbers.
  struct Columns {
    const T* rows;
    int64_t first, count, ld;
  };

  // to [left.count, right.count] = left^T right, a sum over all R rows.
  void sum_products(Q& queue, const Columns& left, const Columns& right, T* to) {
    if (!to) return;
    queue.multiply(Gemm<T, T>{.M = left.count,
                              .N = right.count,
                              .K = R_,
                              .A = {left.rows + left.first, left.ld, true},
                              .B = {right.rows + right.first, right.ld},
                              .C = {to, right.count}});
  }

  // The gradients of vectors: sums over all rows.
  void sum_vectors(Q& queue) {
    typename TotalColumnSums<T>::Targets of_x{}, of_h{}, of_units{};
    for (int d = 0; d < p_.D; ++d) {
      const WeightGradients<T>& dw = p_.dweights[d];
      of_x.of_block[d] = {dw.b_ih, has_own_dgh<Cell> ? nullptr : dw.b_hh};
      if (has_own_dgh<Cell>) of_h.of_block[d] = {dw.b_hh, nullptr};
      for (int k = 0; k < U; ++k) of_units.of_block[d * U + k] = {dw.unit[k], nullptr};
    }
    sum_columns(queue, dgx_, p_.D, GH_, of_x);
    sum_columns(queue, dgh_, p_.D, GH_, of_h);
    sum_columns(queue, du_, p_.D * U, p_.H, of_units);
  }

  // Writes the column sums of each column block of `from` [R, blocks * columns] to one or two places.
  void sum_columns(Q& queue, const T* from, int blocks, int64_t columns,
                   const typename TotalColumnSums<T>::Targets& to) {
    const auto wanted = [](const auto& places) { return places.first || places.second; };
    if (std::ranges::none_of(to.of_block, wanted)) return;
    const int64_t width = blocks * columns;
    queue.launch(1, strips_, width, PartialColumnSums<T>{from, R_, width, strip_, sums_});
    queue.launch(
        blocks, 1, columns,
        TotalColumnSums<T>{.sums = sums_, .strips = strips_, .width = width, .columns = columns, .to = to});
  }

  const BackwardParams<T>& p_;
  const Plan plan_;
  const int64_t GH_, R_, strip_, strips_;
  const RowsOnDevice rows_;
  const InputWeights<T> W_ih_;
  T *dgx_, *dgh_;                        // [R, D*GH]; one buffer unless has_own_dgh<Cell>
  T* h_prev_ = nullptr;                  // [R, D*P], what W_hh multiplied in each step, if wanted
  T* v_ = nullptr;                       // [R, D*H], what its rows for the late gates multiplied
  T* du_ = nullptr;                      // [R, D*U*H], each step's share of the gradients of the unit vectors
  Real<T>* sums_;                        // [strips, max(D*GH, D*U*H)]
  T *dh_rows_ = nullptr, *m_ = nullptr;  // [R, D*P], [R, D*H], with a projection
  BackwardRecurrence<T> recurrence_{};
  std::optional<stepwise::Backward<Cell, T>> stepwise_;  // for a stepwise plan
  void* scratch_ = nullptr;                              // for the other kinds
};

}  // namespace fastrnn::cuda
