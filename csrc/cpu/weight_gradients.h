#pragma once

// The gradients of weights, biases and vectors of a unit: sums over the rows of a chunk.

#include <algorithm>
#include <type_traits>

#include "core/params.h"
#include "cpu/chunks.h"
#include "cpu/gemm/gemm.h"
#include "cpu/range.h"
#include "cpu/threads/team.h"
#include "cpu/tuning.h"
#include "cpu/workspace.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// Whether a sum over the rows of a chunk replaces what stands there or is added to it.
enum class Update { replace, add };

// What the steps of a chunk leave for the gradients, row after row.
template <class T>
struct ChunkBuffers {
  T *dgx, *dgh;                   // [rows, GH]; one buffer unless a gate is split
  T *dh = nullptr, *m = nullptr;  // [rows, P] and [rows, H] with a projection: dh and the cell's output
  T* du = nullptr;                // [rows, U*H]
  T* v = nullptr;                 // [rows, H] with late gates: what these multiplied
  T* dropped = nullptr;           // [rows, P] with dropout of h: h before the step times the mask
  const T **x, **h;               // [rows]: where the input, and the hidden state before the step, stand
};

// A gradient while chunks are added to it: the result itself, or numbers not yet rounded to it.
template <class T>
struct GradientSum {
  T* result;  // null: not wanted
  Real<T>* sum;
  int64_t size;
};

// Rows of a chunk, [K, panels.units], as a factor of weight gradients. Its panels are one micropanel each.
template <class T>
struct ChunkFactor {
  Panels<T> panels;
  const T* rows = nullptr;           // one row after the other, or
  const T* const* listed = nullptr;  // each where it stands
  Real<T>* packed = nullptr;         // null: not to be packed
  int64_t stride = 0;                // from row to row, 0 for panels.units

  int64_t row_stride() const { return stride ? stride : panels.units; }
  PackedMatrix<T> matrix(int64_t K) const { return {panels, K, packed}; }

  // Row after row, not panel after panel: rows that another core has written come quickest as a stream.
  void pack(int64_t K, Range block) const {
    const PackedMatrix<T> B = matrix(K);
    const auto row = [&](int64_t k) { return listed ? listed[k] : rows + k * row_stride(); };
    const int64_t count = panels.count();
    for (int64_t k = block.begin; k < block.end; k += kKPack<T>) {
      for (int64_t p = 0; p < count; ++p) pack_micropanel_row(B, p, Micropanel{0, panels.nv(p)}, k, row);
    }
  }
};

// to (+)= left^T right. A task is a block of left's columns and a panel of right's.
template <class T>
struct WeightProduct {
  const ChunkFactor<T>&left, &right;
  const GradientSum<T>& to;

  int64_t tasks() const { return to.result ? left.panels.count() * right.panels.count() : 0; }
  void multiply(int64_t K, int64_t task, Update update) const {
    const int64_t block = task / right.panels.count(), p = task % right.panels.count();
    const int64_t m = left.panels.first(block), N = right.panels.units;
    LeftFactor<T> A{
        .data = left.rows + m, .M = left.panels.size(block), .K = K, .row_stride = kKPack<T>, .k_stride = 0};
    if (left.packed) {
      A.data = reinterpret_cast<const T*>(left.matrix(K).panel(block));
      A.k_stride = left.panels.width(block) * kKPack<T>;
    } else {
      A.k_stride = left.row_stride();
    }
    const Destination<Real<T>> C{to.sum + m * N + right.panels.first(p), N, right.panels.last(p)};
    multiply_packed<T>({.A = A,
                        .B = right.matrix(K),
                        .panel = p,
                        .to = update == Update::add ? C.added() : C,
                        .kc = tuning::kSummedRows});
  }
};

// to[column] (+)= the sum over k of rows[k, column], for the columns of a block.
template <class T>
struct RowSum {
  const T* rows;
  int64_t K, stride;  // numbers from a row to the next
  Range columns;
  Real<T>* to;
  Update update;
};
template <class T>
void sum_rows(const RowSum<T>& s) {
  using V = Vector<Real<T>>;
  constexpr int L = kLanes<Real<T>>;
  constexpr int64_t kShort = tuning::kSummedBiasRows, kLong = kShort * kShort;
  const int64_t K = s.K;
  const auto sum_vectors = [&](auto count, int64_t column, int64_t lanes) __attribute__((always_inline)) {
    constexpr int N = decltype(count)::value;
    V sum[N] = {};
    for (int j = 0; s.update == Update::add && j < N; ++j) sum[j] = load_upto(s.to + column + j * L, lanes);
    for (int64_t k0 = 0; k0 < K; k0 += kLong) {
      V partial[N] = {};
      for (int64_t k1 = k0; k1 < std::min(k0 + kLong, K); k1 += kShort) {
        V shorter[N] = {};
        for (int64_t k = k1; k < std::min(k1 + kShort, K); ++k) {
          for (int j = 0; j < N; ++j) shorter[j] += load_upto(s.rows + k * s.stride + column + j * L, lanes);
        }
        for (int j = 0; j < N; ++j) partial[j] += shorter[j];
      }
      for (int j = 0; j < N; ++j) sum[j] += partial[j];
    }
    for (int j = 0; j < N; ++j) store_upto(s.to + column + j * L, sum[j], lanes);
  };
  constexpr int kTogether = tuning::kBiasVectors;
  int64_t column = s.columns.begin;
  for (; column + kTogether * L <= s.columns.end; column += kTogether * L) {
    sum_vectors(std::integral_constant<int, kTogether>{}, column, L);
  }
  for (; column < s.columns.end; column += L) {
    sum_vectors(std::integral_constant<int, 1>{}, column, s.columns.end - column);
  }
}

// Which of several kinds of tasks a task is; `task` becomes its number among them.
template <size_t kinds>
size_t kind_of(const int64_t (&counts)[kinds], int64_t& task) {
  size_t kind = 0;
  for (; task >= counts[kind]; ++kind) task -= counts[kind];
  return kind;
}

// All of these gradients of one direction. For each chunk of K rows its factors are packed, then its products and
// its vectors are added; whoever calls shares the tasks among threads.
template <class T>
class GradientSums {
  static constexpr int L = kLanes<Real<T>>;

 public:
  // most_rows: of a chunk.
  GradientSums(const cells::CellInfo& cell, const BackwardParams<T>& p, int d, const ChunkBuffers<T>& buffers,
               int64_t most_rows, int threads, Workspace& workspace)
      : GH_(cell.gates.size() * p.H),
        H_(p.H),
        EH_(GH_ - cell.late_gates * p.H),
        U(cell.unit_vectors()),
        buffers_(buffers) {
    const WeightGradients<T>& dw = p.dweights[d];
    const auto sum_of = [&](T* result, int64_t size) -> GradientSum<T> {
      if constexpr (std::is_same_v<T, Real<T>>) {
        return {result, result, size};
      } else {
        return {result, result ? workspace.take<Real<T>>(size) : nullptr, size};
      }
    };
    dW_ih_ = sum_of(dw.W_ih, GH_ * p.I);
    dW_hh_ = sum_of(dw.W_hh, GH_ * p.P);
    if (EH_ < GH_ && dw.W_hh) {  // the late gates' rows, as a sum of their own
      dW_late_ = {dw.W_hh + EH_ * p.P, dW_hh_.sum + EH_ * p.P, (GH_ - EH_) * p.P};
    }
    dW_hr_ = sum_of(dw.W_hr, p.P * p.H);
    db_ih_ = sum_of(dw.b_ih, GH_);
    db_hh_ = sum_of(dw.b_hh, GH_);
    for (int u = 0; u < U; ++u) dunit_[u] = sum_of(dw.unit[u], p.H);

    const auto blocks_of = [&](int64_t units, int vectors) { return Panels<T>{units, 1, vectors, vectors}; };
    const int block = block_vectors(threads);
    factors_[kDgx] = {.panels = blocks_of(GH_, block), .rows = buffers.dgx};
    factors_[kDgh] = {.panels = blocks_of(EH_, block), .rows = buffers.dgh, .stride = GH_};
    factors_[kDgLate] = {.panels = blocks_of(GH_ - EH_, block), .rows = buffers.dgh + EH_, .stride = GH_};
    factors_[kDh] = {.panels = blocks_of(p.P, block), .rows = buffers.dh};
    factors_[kX] = {.panels = blocks_of(p.I, kMicropanelVectors), .listed = buffers.x};
    factors_[kH] = {.panels = blocks_of(p.P, kMicropanelVectors), .listed = buffers.h};
    factors_[kV] = {.panels = blocks_of(p.H, kMicropanelVectors), .rows = buffers.v};
    factors_[kM] = {.panels = blocks_of(p.H, kMicropanelVectors), .rows = buffers.m};
    // How often products read their left factor. If that is seldom and its rows are near each other, packing it
    // does not pay.
    const auto panels_of = [](const GradientSum<T>& sum, int64_t N) {
      return sum.result ? ceil_div(N, kMicropanelVectors * L) : 0;
    };
    const int64_t ih = panels_of(dW_ih_, p.I), hh = panels_of(dW_hh_, p.P), hr = panels_of(dW_hr_, p.H),
                  late = panels_of(dW_late_, p.H);
    const auto pays = [](int64_t times, int64_t units) {
      const bool near = units * static_cast<int64_t>(sizeof(T)) <= tuning::kNearRowBytes;
      return times > (kKPack<T> == 1 && near ? tuning::kSeldomRead : 0);
    };
    one_ = buffers.dgx == buffers.dgh && EH_ == GH_;
    const bool packs[] = {pays(ih + (one_ ? hh : 0), GH_),
                          pays(one_ ? 0 : hh, GH_),
                          pays(late, GH_),
                          pays(hr, p.P),
                          ih > 0,
                          hh > 0,
                          late > 0,
                          hr > 0};
    for (int i = 0; i < kFactors; ++i) {
      ChunkFactor<T>& factor = factors_[i];
      if (packs[i]) factor.packed = workspace.take<Real<T>>(factor.matrix(most_rows).size());
    }
  }

  int64_t packing_tasks(int64_t K) const {
    int64_t tasks = 0;
    for (const ChunkFactor<T>& factor : factors_) tasks += packing_tasks(factor, K);
    return tasks;
  }
  void pack(int64_t K, int64_t task) const {
    int64_t counts[kFactors];
    for (int i = 0; i < kFactors; ++i) counts[i] = packing_tasks(factors_[i], K);
    const size_t i = kind_of(counts, task);
    factors_[i].pack(K, block_of(task, kRowBlock, K));
  }

  int64_t product_tasks() const {
    return product(kIh).tasks() + product(kHh).tasks() + product(kLate).tasks() + product(kHr).tasks();
  }
  void multiply(int64_t K, int64_t task, Update update) const {
    const int64_t counts[] = {product(kIh).tasks(), product(kHh).tasks(), product(kLate).tasks(),
                              product(kHr).tasks()};
    const size_t kind = kind_of(counts, task);
    product(kind).multiply(K, task, update);
  }

  // Biases and vectors of a unit.
  int64_t vector_tasks() const { return bias_tasks() + U * ceil_div(H_, kVectorBlock); }
  void add_vectors(int64_t K, int64_t task, Update update) const {
    if (task < bias_tasks()) return add_biases(K, block_of(task, kVectorBlock, GH_), update);
    task -= bias_tasks();
    const int64_t blocks = ceil_div(H_, kVectorBlock), u = task / blocks;
    const Range units = block_of(task % blocks, kVectorBlock, H_);
    if (dunit_[u].result) sum_rows<T>({buffers_.du + u * H_, K, U * H_, units, dunit_[u].sum, update});
  }

  // Rounds the sums to the results, each thread a share.
  void write(const Team& team) const {
    const auto round = [&](const GradientSum<T>& to) {
      const Range share = team.own_share(to.size);
      if (to.result) copy(to.result + share.begin, to.sum + share.begin, share.end - share.begin);
    };
    for (const GradientSum<T>* to : {&dW_ih_, &dW_hh_, &dW_hr_, &db_ih_, &db_hh_}) round(*to);
    for (int u = 0; u < U; ++u) round(dunit_[u]);
  }

 private:
  enum Factors { kDgx, kDgh, kDgLate, kDh, kX, kH, kV, kM, kFactors };  // kDgh is not used if it is kDgx
  enum Products : size_t { kIh, kHh, kLate, kHr };
  static constexpr int64_t kVectorBlock = tuning::kVectorBlock;

  static int64_t packing_tasks(const ChunkFactor<T>& factor, int64_t K) {
    return factor.packed ? ceil_div(K, kRowBlock) : 0;
  }
  // Vectors of a block of gates. An odd number of cache lines, or the block's rows would share few sets of the cache.
  int block_vectors(int threads) const {
    constexpr int64_t kLine = tuning::kLine, kWidth = sizeof(Real<T>);
    const int64_t block = std::clamp(ceil_div(GH_, tuning::kGateBlocksOfThread * threads),
                                     tuning::kLeastGateBlock, tuning::kMostGateBlock);
    return static_cast<int>((ceil_div(block * kWidth, kLine) | 1) * kLine / (L * kWidth));
  }

  WeightProduct<T> product(size_t kind) const {
    switch (kind) {
      case kIh:
        return {factors_[kDgx], factors_[kX], dW_ih_};
      case kHh:
        return {factors_[one_ ? kDgx : kDgh], factors_[kH], dW_hh_};
      case kLate:
        return {factors_[kDgLate], factors_[kV], dW_late_};
      default:
        return {factors_[kDh], factors_[kM], dW_hr_};
    }
  }

  int64_t bias_tasks() const { return db_ih_.result || db_hh_.result ? ceil_div(GH_, kVectorBlock) : 0; }
  void add_biases(int64_t K, Range gates, Update update) const {
    if (db_ih_.result) sum_rows<T>({buffers_.dgx, K, GH_, gates, db_ih_.sum, update});
    if (!db_hh_.result) return;
    if (db_ih_.result && buffers_.dgx == buffers_.dgh) {
      return copy(db_hh_.sum + gates.begin, db_ih_.sum + gates.begin, gates.end - gates.begin);
    }
    sum_rows<T>({buffers_.dgh, K, GH_, gates, db_hh_.sum, update});
  }

  const int64_t GH_, H_, EH_;  // EH: columns of the gates that are not late
  const int U;                 // vectors of a unit
  const ChunkBuffers<T> buffers_;
  ChunkFactor<T> factors_[kFactors];
  bool one_;  // is kDgx the left factor of dW_hh too?
  GradientSum<T> dW_ih_, dW_hh_, dW_hr_, db_ih_, db_hh_;
  GradientSum<T> dW_late_{};  // a part of dW_hh_
  GradientSum<T> dunit_[kMostUnitVectors];
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
