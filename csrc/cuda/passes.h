#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "cuda/plan.h"
#include "cuda/stepwise.h"

// Forward and backward of a layer: products over all rows around the recurrence. Written over a queue Q
// (cuda/stepwise.h), so that the host can run them too; beside the calls named there it has for tiers 1 and 2
//   recurrence_bytes(plan)                           scratch memory they need (static)
//   run_recurrence<Cell>(plan, recurrence, scratch)  forward or backward, by the type of the recurrence

namespace fastrnn::cuda {

// The rows of a batch with its arrays on the device: written there in run, from buffers taken before.
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
    for (int64_t t = 0; t < rows_.T; ++t) {  // later steps have fewer sequences
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

// W_ih of all directions, one below the other.
template <class T>
class InputWeights {
 public:
  InputWeights(const LayerParams<T>& p, int64_t GH, Arena& arena) : p_(p), GH_(GH) {
    if (p.D == 2) stacked_ = arena.take<T>(2 * GH * p.I);
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

// What recurrences of both passes have.
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
}

template <class Q, class Cell, class T>
class LayerForward {
 public:
  LayerForward(const ForwardParams<T>& params, const Plan& plan, Arena& arena)
      : p(params),
        plan(plan),
        GH(Cell::gates * p.H),
        R(p.rows.total()),
        rows(p.rows, arena),
        W_ih(p, GH, arena) {
    gx = arena.take<Real<T>>(R * p.D * GH);
    fill(recurrence, p, rows.get());
    recurrence.gx = gx;
    recurrence.hn = p.hn;
    std::copy_n(p.cn, kMostCellStates, recurrence.cn);
    if (plan.tier == 0) {
      stepwise.emplace(recurrence, p.rows, p.P, arena);
    } else {
      scratch = arena.take<char>(Q::recurrence_bytes(plan));
    }
  }

  void run(Q& queue) {
    rows.write(queue);
    queue.multiply(Gemm<T, Real<T>>{.M = R,
                                    .N = p.D * GH,
                                    .K = p.I,
                                    .A = {p.x, p.I},
                                    .B = {W_ih.stack(queue), p.I, true},
                                    .C = {gx, p.D * GH}});
    if (stepwise) {
      stepwise->run(queue);
    } else {
      queue.template run_recurrence<Cell>(plan, recurrence, scratch);
    }
    if (p.y_copy) queue.copy(p.y_copy, p.y, R * p.D * p.P);
  }

 private:
  const ForwardParams<T>& p;
  const Plan plan;
  const int64_t GH, R;
  const RowsOnDevice rows;
  const InputWeights<T> W_ih;
  Real<T>* gx;  // [R, D*GH]
  Recurrence<T> recurrence{};
  std::optional<stepwise::Forward<Cell, T>> stepwise;  // tier 0
  void* scratch = nullptr;                             // tiers 1 and 2
};

template <class Q, class Cell, class T>
class LayerBackward {
 public:
  LayerBackward(const BackwardParams<T>& params, const Plan& plan, Arena& arena)
      : p(params),
        plan(plan),
        GH(Cell::gates * p.H),
        R(p.rows.total()),
        // About as many parts as rows in each: both passes of a column sum are short, and so are its sums.
        part(std::max<int64_t>(16, static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(R)))))),
        parts((R + part - 1) / part),
        rows(p.rows, arena),
        W_ih(p, GH, arena) {
    const int64_t width = p.D * GH;
    dgx = arena.take<T>(R * width);
    dgh = cells::has_split_gate<Cell> ? arena.take<T>(R * width) : dgx;
    if (p.dweights[0].W_hh || p.dweights[1].W_hh) h_prev = arena.take<T>(R * p.D * p.P);
    sums = arena.take<Real<T>>(parts * std::max(width, p.D * U * p.H));
    if (U > 0) du = arena.take<T>(R * p.D * U * p.H);
    if (p.weights[0].W_hr) {
      dh_rows = arena.take<T>(R * p.D * p.P);
      m = arena.take<T>(R * p.D * p.H);
    }
    fill(recurrence, p, rows.get());
    recurrence.dy = p.dy;
    recurrence.dhn = p.dhn;
    std::copy_n(p.dcn, kMostCellStates, recurrence.dcn);
    recurrence.dgx = dgx;
    recurrence.dgh = dgh;
    recurrence.du = du;
    recurrence.dh0 = p.dh0;
    std::copy_n(p.dc0, kMostCellStates, recurrence.dc0);
    if (plan.tier == 0) {
      stepwise.emplace(recurrence, p.rows, p.P, dh_rows, m, arena);
    } else {
      scratch = arena.take<char>(Q::recurrence_bytes(plan));
    }
  }

  void run(Q& queue) {
    rows.write(queue);
    if (stepwise) {
      stepwise->run(queue);
    } else {
      queue.template run_recurrence<Cell>(plan, recurrence, scratch);
    }
    if (p.dx) {
      queue.multiply(Gemm<T, T>{.M = R,
                                .N = p.I,
                                .K = p.D * GH,
                                .A = {dgx, p.D * GH},
                                .B = {W_ih.stack(queue), p.I},
                                .C = {p.dx, p.I}});
    }
    if (h_prev) {
      queue.launch(p.rows.T, p.rows.B, p.D * p.P, GatherPrevious<T>{rows.get(), p.P, p.D, p.y, p.h0, h_prev});
    }
    for (int d = 0; d < p.D; ++d) {
      const WeightGradients<T>& dw = p.dweights[d];
      sum_products(queue, dgx, GH, d, p.x, p.I, 0, p.I, dw.W_ih);
      sum_products(queue, dgh, GH, d, h_prev, p.P, d, p.D * p.P, dw.W_hh);
      sum_products(queue, dh_rows, p.P, d, m, p.H, d, p.D * p.H, dw.W_hr);
    }
    sum_vectors(queue);
  }

 private:
  static constexpr int U = Cell::unit_vectors;

  // to [M, N] = sum over the rows of column block d of `gradient` [R, D*M] times column block `block` of
  // `right`, whose rows have ld numbers.
  void sum_products(Q& queue, const T* gradient, int64_t M, int d, const T* right, int64_t N, int block,
                    int64_t ld, T* to) {
    if (!to) return;
    queue.multiply(Gemm<T, T>{.M = M,
                              .N = N,
                              .K = R,
                              .A = {gradient + d * M, p.D * M, true},
                              .B = {right + block * N, ld},
                              .C = {to, N}});
  }

  // The gradients of vectors are sums over all rows.
  void sum_vectors(Q& queue) {
    typename SumParts<T>::Targets of_x{}, of_h{}, of_units{};
    for (int d = 0; d < p.D; ++d) {
      const WeightGradients<T>& dw = p.dweights[d];
      of_x[d] = {dw.b_ih, cells::has_split_gate<Cell> ? nullptr : dw.b_hh};
      if (cells::has_split_gate<Cell>) of_h[d] = {dw.b_hh};
      for (int k = 0; k < U; ++k) of_units[d * U + k] = {dw.unit[k]};
    }
    sum_columns(queue, dgx, p.D, GH, of_x);
    sum_columns(queue, dgh, p.D, GH, of_h);
    sum_columns(queue, du, p.D * U, p.H, of_units);
  }

  // The sums of the columns of `from` [R, blocks * columns] go, block by block, to one or two places each.
  void sum_columns(Q& queue, const T* from, int blocks, int64_t columns,
                   const typename SumParts<T>::Targets& to) {
    const auto wanted = [](const auto& targets) { return targets[0] || targets[1]; };
    if (std::none_of(to.begin(), to.end(), wanted)) return;
    const int64_t width = blocks * columns;
    queue.launch(1, parts, width, SumPart<T>{from, R, width, part, sums});
    queue.launch(blocks, 1, columns,
                 SumParts<T>{.sums = sums, .parts = parts, .width = width, .columns = columns, .to = to});
  }

  const BackwardParams<T>& p;
  const Plan plan;
  const int64_t GH, R, part, parts;
  const RowsOnDevice rows;
  const InputWeights<T> W_ih;
  T *dgx, *dgh;                        // [R, D*GH]; one buffer unless the cell has a split gate
  T* h_prev = nullptr;                 // [R, D*P], the hidden state before each step, if wanted
  T* du = nullptr;                     // [R, D*U*H], a step's share of the gradients of the unit vectors
  Real<T>* sums;                       // [parts, max(D*GH, D*U*H)]
  T *dh_rows = nullptr, *m = nullptr;  // [R, D*P], [R, D*H], with a projection
  BackwardRecurrence<T> recurrence{};
  std::optional<stepwise::Backward<Cell, T>> stepwise;  // tier 0
  void* scratch = nullptr;                              // tiers 1 and 2
};

}  // namespace fastrnn::cuda
