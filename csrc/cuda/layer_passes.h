#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
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
  InputWeights(const ForwardParams<T>& p, int64_t GH, Arena& arena) : p_(p), GH_(GH) {
    if (p.D == 2) stacked_ = arena.take<T>(2 * GH * p.I);
  }

  template <class Q>
  const T* stack(Q& queue) const {  // [D*GH, I]
    if (p_.D == 1) return p_.weights[0].W_ih;
    for (int d = 0; d < 2; ++d) queue.copy(stacked_ + d * GH_ * p_.I, p_.weights[d].W_ih, GH_ * p_.I);
    return stacked_;
  }

 private:
  const ForwardParams<T>& p_;
  const int64_t GH_;
  T* stacked_ = nullptr;
};

template <class T>
void fill(Recurrence<T>& r, const ForwardParams<T>& p, const DeviceRows& rows) {
  r.rows = rows;
  r.H = p.H;
  r.D = p.D;
  std::copy_n(p.weights, 2, r.weights);
  r.h0 = p.h0;
  r.c0 = p.c0;
  r.y = p.y;
  r.s = p.s;
  r.c = p.c;
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
    gx_ = arena.take<Real<T>>(R_ * p_.D * GH_);
    fill(recurrence_, p_, rows_.get());
    recurrence_.gx = gx_;
    recurrence_.hn = p_.hn;
    recurrence_.cn = p_.cn;
    if (plan_.kind == Kind::stepwise) {
      stepwise_.emplace(recurrence_, p_.rows, p_.P, arena);
    } else {
      scratch_ = arena.take<char>(Q::recurrence_bytes(plan_));
    }
  }

  void run(Q& queue) {
    rows_.write(queue);
    queue.multiply(Gemm<T, Real<T>>{.M = R_,
                                    .N = p_.D * GH_,
                                    .K = p_.I,
                                    .A = {p_.x, p_.I},
                                    .B = {W_ih_.stack(queue), p_.I, true},
                                    .C = {gx_, p_.D * GH_}});
    if (stepwise_) {
      stepwise_->run(queue);
    } else {
      queue.template run_recurrence<Cell>(plan_, recurrence_, scratch_);
    }
  }

 private:
  const ForwardParams<T>& p_;
  const Plan plan_;
  const int64_t GH_, R_;
  const RowsOnDevice rows_;
  const InputWeights<T> W_ih_;
  Real<T>* gx_;  // [R, D*GH]
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
    dgx_ = arena.take<T>(R_ * width);
    dgh_ = cells::has_split_gate<Cell> ? arena.take<T>(R_ * width) : dgx_;
    if (wanted(&WeightGradients<T>::W_hh)) h_prev_ = arena.take<T>(R_ * p_.D * p_.P);
    sums_ = arena.take<Real<T>>(strips_ * width);
    if (p_.weights[0].W_hr) {
      dh_rows_ = arena.take<T>(R_ * p_.D * p_.P);
      m_ = arena.take<T>(R_ * p_.D * p_.H);
    }
    fill(recurrence_, p_, rows_.get());
    recurrence_.dy = p_.dy;
    recurrence_.dhn = p_.dhn;
    recurrence_.dcn = p_.dcn;
    recurrence_.dgx = dgx_;
    recurrence_.dgh = dgh_;
    recurrence_.dh0 = p_.dh0;
    recurrence_.dc0 = p_.dc0;
    if (plan_.kind == Kind::stepwise) {
      stepwise_.emplace(recurrence_, p_.rows, p_.P, dh_rows_, m_, arena);
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
    if (p_.dx) {
      queue.multiply(Gemm<T, T>{.M = R_,
                                .N = p_.I,
                                .K = p_.D * GH_,
                                .A = {dgx_, p_.D * GH_},
                                .B = {W_ih_.stack(queue), p_.I},
                                .C = {p_.dx, p_.I}});
    }
    if (h_prev_) {
      queue.launch(p_.rows.T, p_.rows.B, p_.D * p_.P,
                   GatherPrevious<T>{rows_.get(), p_.P, p_.D, p_.y, p_.h0, h_prev_});
    }
    for (int d = 0; d < p_.D; ++d) {
      const WeightGradients<T>& dw = p_.dweights[d];
      sum_products(queue, dgx_, GH_, d, p_.x, p_.I, 0, p_.I, dw.W_ih);
      sum_products(queue, dgh_, GH_, d, h_prev_, p_.P, d, p_.D * p_.P, dw.W_hh);
      sum_products(queue, dh_rows_, p_.P, d, m_, p_.H, d, p_.D * p_.H, dw.W_hr);
    }
    if (cells::has_split_gate<Cell>) {
      sum_columns(queue, dgx_, &WeightGradients<T>::b_ih, nullptr);
      sum_columns(queue, dgh_, &WeightGradients<T>::b_hh, nullptr);
    } else {
      sum_columns(queue, dgx_, &WeightGradients<T>::b_ih, &WeightGradients<T>::b_hh);
    }
  }

 private:
  using Gradient = T* WeightGradients<T>::*;
  bool wanted(Gradient of) const {
    return p_.dweights[0].*of != nullptr || (p_.D == 2 && p_.dweights[1].*of != nullptr);
  }

  // to [M, N] = A^T B, a sum over all R rows. A is column block d of `gradient` [R, D*M]. B is column block `block` of
  // `right`, whose rows have `ld` numbers.
  void sum_products(Q& queue, const T* gradient, int64_t M, int d, const T* right, int64_t N, int block,
                    int64_t ld, T* to) {
    if (!to) return;
    queue.multiply(Gemm<T, T>{.M = M,
                              .N = N,
                              .K = R_,
                              .A = {gradient + d * M, p_.D * M, true},
                              .B = {right + block * N, ld},
                              .C = {to, N}});
  }

  // Writes the column sums of the gate gradients to the gradients of one or two biases.
  void sum_columns(Q& queue, const T* gradients, Gradient first, Gradient second) {
    if (!wanted(first) && !(second && wanted(second))) return;
    const int64_t width = p_.D * GH_;
    TotalColumnSums<T> total{.sums = sums_, .strips = strips_, .width = width, .columns = GH_, .to = {}};
    for (int d = 0; d < p_.D; ++d) {
      total.to[d][0] = p_.dweights[d].*first;
      if (second) total.to[d][1] = p_.dweights[d].*second;
    }
    queue.launch(1, strips_, width, PartialColumnSums<T>{gradients, R_, width, strip_, sums_});
    queue.launch(p_.D, 1, GH_, total);
  }

  const BackwardParams<T>& p_;
  const Plan plan_;
  const int64_t GH_, R_, strip_, strips_;
  const RowsOnDevice rows_;
  const InputWeights<T> W_ih_;
  T *dgx_, *dgh_;                        // [R, D*GH]; one buffer unless the cell has a split gate
  T* h_prev_ = nullptr;                  // [R, D*P], the hidden state before each step, if wanted
  Real<T>* sums_;                        // [strips, D*GH]
  T *dh_rows_ = nullptr, *m_ = nullptr;  // [R, D*P], [R, D*H], with a projection
  BackwardRecurrence<T> recurrence_{};
  std::optional<stepwise::Backward<Cell, T>> stepwise_;  // for a stepwise plan
  void* scratch_ = nullptr;                              // for the other kinds
};

}  // namespace fastrnn::cuda
