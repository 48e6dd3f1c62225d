#pragma once

#include <array>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "cells/registry.h"
#include "cpu/chunks.h"
#include "cpu/gemm/gemm.h"
#include "cpu/gemm/math.h"
#include "cpu/plan.h"
#include "cpu/threads/team.h"
#include "cpu/weight_gradients.h"
#include "cpu/workspace.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// The backward of one direction, from its last step to its first. A step multiplies the gate gradients
// of the step after it with W_hh, which gives dh, and computes its own gate gradients panel by panel as dh
// leaves the tile. The gate gradients of a chunk of steps then give their share of dW_ih, dW_hh, the biases
// and dx while they are in cache.
template <class Cell, class T>
class Backward {
  using V = Vector<Real<T>>;
  static constexpr int L = kLanes<Real<T>>;
  static constexpr int C = Cell::cell_states, U = Cell::unit_vectors;

 public:
  Backward(const BackwardParams<T>& params, int d, const Plan& plan, const Resources& resources)
      : p(params),
        d(d),
        direction{p.rows.T, d == 1},
        plan(plan),
        steal(params.rows.B >= kStolenRows),
        w(p.weights[d]),
        projected(w.W_hr != nullptr),
        wants_dh0(p.dh0 != nullptr),
        GH(Cell::gates * p.H),
        R(p.rows.total()),
        out_panels(make_panels<T>(p.P, 1, plan.step_rows(p.rows.B), GH, plan.step_threads())),
        unit_panels(make_panels<T>(p.H, 1, plan.step_rows(p.rows.B), p.P, plan.step_threads())),
        input_panels{p.I, 1, kTileVectors, kTileVectors},
        P_padded(ceil_div(p.P, L) * L),
        H_padded(ceil_div(p.H, L) * L),
        workspace(resources) {
    const int64_t B = p.rows.B;
    const WeightGradients<T>& dw = p.dweights[d];
    chunk_steps = steps_in_chunk(
        p.rows, std::max<int64_t>(kChunkRows, kChunkBytes / (GH * static_cast<int64_t>(sizeof(T)))));
    chunk_rows = chunk_steps * sequences_in_chunk(p.rows);
    if (p.rows.T > 1 || wants_dh0) W_hh = take_packed(out_panels, GH);
    if (p.dx) W_ih = take_packed(input_panels, GH);
    dgx = workspace.take<T>(chunk_rows * GH);
    dgh = cells::has_split_gate<Cell> ? workspace.take<T>(chunk_rows * GH) : dgx;
    if (chunk_steps < p.rows.T) carry = workspace.take<T>(B * GH);
    dh = workspace.take<Real<T>>(B * P_padded);
    if (C > 0) dc = workspace.take<Real<T>>(C * B * H_padded);
    if (U > 0) du = workspace.take<T>(chunk_rows * U * p.H);
    if (projected) {
      W_hr = take_packed(unit_panels, p.P);
      dh_rows = workspace.take<T>(chunk_rows * p.P);
      m_rows = workspace.take<T>(chunk_rows * p.H);
    }
    zeros = workspace.take<T>(std::max(p.P, p.H));
    std::memset(zeros, 0, std::max(p.P, p.H) * sizeof(T));
    dW_ih = make_sum(dw.W_ih, GH * p.I);
    dW_hh = make_sum(dw.W_hh, GH * p.P);
    dW_hr = make_sum(dw.W_hr, p.P * p.H);
    db_ih = make_sum(dw.b_ih, GH);
    db_hh = make_sum(dw.b_hh, GH);
    for (int k = 0; k < U; ++k) dunit[k] = make_sum(dw.unit[k], p.H);
    x_rows = workspace.take<const T*>(chunk_rows);
    h_rows = workspace.take<const T*>(chunk_rows);
    // How often products read their left factor. If that is seldom and its rows are near each other, packing it
    // does not pay.
    const auto panels_of = [](const Sum& sum, int64_t N) {
      return sum.result ? ceil_div(N, kTileVectors * L) : 0;
    };
    const int64_t ih = panels_of(dW_ih, p.I), hh = panels_of(dW_hh, p.P), hr = panels_of(dW_hr, p.H);
    const auto pays = [](int64_t times, int64_t units) {
      constexpr int64_t kSeldom = 4, kNearBytes = 1024;
      const bool near = units * static_cast<int64_t>(sizeof(T)) <= kNearBytes;
      return times > (kKPack<T> == 1 && near ? kSeldom : 0);
    };
    const bool one = dgx == dgh;
    factors = {take_factor(pays(ih + (one ? hh : 0), GH), block_vectors(), GH, dgx),
               take_factor(pays(one ? 0 : hh, GH), block_vectors(), GH, dgh),
               take_factor(pays(hr, p.P), block_vectors(), p.P, dh_rows),
               take_factor(ih > 0, kTileVectors, p.I, nullptr, x_rows),
               take_factor(hh > 0, kTileVectors, p.P, nullptr, h_rows),
               take_factor(hr > 0, kTileVectors, p.H, m_rows)};
  }

  void run(Team& team) {
    prepare(team);
    const int64_t sequences = sequences_in_chunk(p.rows);
    for (int64_t b = 0; b < p.rows.B; b += sequences) {
      run_sequences(team, {b, std::min(b + sequences, p.rows.B)});
    }
    write_initial(team);
    if constexpr (!std::is_same_v<T, Real<T>>) write_sums(team);
  }

 private:
  void run_sequences(Team& team, Range batch) {
    Later later{nullptr, 0};
    for (int64_t i1 = p.rows.T; i1 > 0; i1 -= std::min(chunk_steps, i1)) {
      const int64_t i0 = std::max<int64_t>(i1 - chunk_steps, 0);
      const Chunk chunk = chunk_of(p.rows, direction, i0, i1, batch);
      // What the step after step i of the forward has left.
      const auto later_of = [&](int64_t i) {
        if (i + 1 == i1) return later;
        const int64_t t = direction.time(i + 1);
        return Later{dgh + chunk.row(t) * GH, p.rows.n(t)};
      };
      if (plan.by_batch()) {
        const Range all{0, out_panels.count()}, all_units{0, unit_panels.count()};
        team.for_each_chain(plan.batch_groups, i1 - i0, [&](int64_t group, int64_t number) {
          const int64_t i = i1 - 1 - number, t = direction.time(i);
          hidden_gradient(chunk, t, all, plan.batch_group(group, p.rows.B), later_of(i));
          if (projected) unproject(chunk, t, all_units, plan.batch_group(group, p.rows.B));
        });
      } else {
        for (int64_t i = i1 - 1; i >= i0; --i) {
          const int64_t t = direction.time(i);
          const Later after = later_of(i);
          fetch_written(after.dgh, after.n * GH);
          team.for_each(out_panels.count(), steal, descending(t),
                        [&](int64_t k) { hidden_gradient(chunk, t, {k, k + 1}, batch, after); });
          if (projected) {
            team.for_each(unit_panels.count(), steal, descending(t),
                          [&](int64_t k) { unproject(chunk, t, {k, k + 1}, batch); });
          }
        }
      }
      later = later_of(i0 - 1);
      chunk_gradients(chunk, team, i1 < p.rows.T || batch.begin > 0, i0 > 0, later);
      if (i0 > 0) later.dgh = carry;
    }
    if (wants_dh0) {
      team.for_each(out_panels.count(), steal, false,
                    [&](int64_t k) { hidden_gradient({p.rows, 0, 0, batch}, -1, {k, k + 1}, batch, later); });
    }
  }

  // Rows whose gate gradients are multiplied at a time: enough that reading and writing dW again costs
  // little.
  static constexpr int64_t kChunkRows = 512;
  // More rows where they are short: a chunk has several barriers.
  static constexpr int64_t kChunkBytes = 512 << 10;

  // The gate gradients of the step after the present one, which covers n sequences.
  struct Later {
    const T* dgh;  // [n, GH]
    int64_t n;
  };

  // A short call reads whole panels from where they stand.
  bool in_place(const Panels<T>& of, int64_t i) const {
    return kKPack<T> == 1 && R <= kUnpackedRows && of.last(i) == L;
  }
  bool descending(int64_t t) const { return !plan.by_batch() && t % 2 == 1; }

  // Rows [0, M) of panel i of A W, W [K, of.units].
  void multiply(const Panels<T>& of, int64_t i, bool descending, int64_t M, int64_t K, const T* A, const T* W,
                const Real<T>* packed, Real<T>* C, PrefetchList* prefetch_list = nullptr) const {
    const Destination<Real<T>> to{C, of.width(i), L};
    if constexpr (kKPack<T> == 1) {
      if (in_place(of, i)) {
        return multiply_panel(M, K, A, K, 1, W + of.first(i), of.units, of.nv(i), to, kc_of(K), nullptr,
                              prefetch_list);
      }
    }
    multiply_packed(of, i, descending, M, K, A, K, kKPack<T>, packed, false, to, kc_of(K), prefetch_list);
  }
  Real<T>* take_packed(const Panels<T>& of, int64_t K) {
    const bool none = in_place(of, 0) && in_place(of, of.count() - 1);
    return workspace.take<Real<T>>(none ? 0 : of.padded_width() * k_packs<T>(K));
  }
  void pack(const Panels<T>& of, int64_t K, const T* W, Real<T>* packed, Team& team) const {
    team.for_each(of.count(), steal, false, [&](int64_t i) {
      if (in_place(of, i)) return;
      const auto row = [&](int64_t k) { return W + k * of.units; };
      for (int j = 0; j < of.micropanels(i); ++j) {
        const Micropanel micropanel = of.micropanel(i, j);
        for (int64_t k = 0; k < K; k += kKPack<T>) {
          pack_micropanel_row(of, i, micropanel, K, k, row, packed + of.offset(i) * k_packs<T>(K));
        }
      }
    });
  }

  using Sum = GradientSum<T>;
  Sum make_sum(T* result, int64_t size) {
    if constexpr (std::is_same_v<T, Real<T>>) {
      return {result, result, size};
    } else {
      return {result, result ? workspace.take<Real<T>>(size) : nullptr, size};
    }
  }

  void prepare(Team& team) {
    if (W_hh) pack(out_panels, GH, w.W_hh, W_hh, team);
    if (W_ih) pack(input_panels, GH, w.W_ih, W_ih, team);
    if (projected) pack(unit_panels, p.P, w.W_hr, W_hr, team);
    team.for_each_share(p.rows.B, [&](Range rows) {
      for (int64_t b = rows.begin; b < rows.end; ++b) {
        initial_gradient(p.dhn, b, p.P, dh + b * P_padded);
        for (int k = 0; k < C; ++k) initial_gradient(p.dcn[k], b, p.H, dc + (k * p.rows.B + b) * H_padded);
      }
    });
  }

  void initial_gradient(const T* given, int64_t b, int64_t size, Real<T>* state) const {
    copy(state, given ? given + (d * p.rows.B + b) * size : zeros, size);
  }

  // dh of step t's n sequences, and with it their gate gradients. `dh` holds what reaches a state past the
  // product: the gradient of the final state, and what the cell passes on element by element. Sequences that
  // the later step had and this one has not (a packed batch in reverse) have reached their initial state:
  // their dh stays as it is.
  void hidden_gradient(const Chunk& chunk, int64_t t, Range own, Range batch, const Later& later) {
    const int64_t n = t < 0 ? 0 : p.rows.n(t);  // no step, only the initial state: none
    alignas(64) Real<T> block[kRowBlock * kPanelVectors * L];
    const int64_t end = std::min(batch.end, std::max(n, later.n));
    for (int64_t i = own.begin; i < own.end; ++i) {
      const int64_t width = out_panels.width(i);
      for (int64_t b0 = batch.begin; b0 < end; b0 += kRowBlock) {
        const int64_t b1 = std::min(b0 + kRowBlock, end);
        const int64_t multiplied = std::clamp<int64_t>(later.n - b0, 0, b1 - b0);
        if (multiplied > 0) {
          PrefetchList prefetch_list(b1 - b0);
          if (b0 < n && !projected && prefetch_pays(p.P, b1 - b0)) add_saved(t, b0, i, prefetch_list);
          multiply(out_panels, i, descending(t), multiplied, GH, later.dgh + b0 * GH, w.W_hh, W_hh, block,
                   &prefetch_list);
        }
        for (int64_t b = b0; b < b1; ++b) {
          for (int j = 0; j < out_panels.u(i); ++j) {
            const int64_t unit = out_panels.first(i) + j * L;
            const int64_t lanes = std::min<int64_t>(L, p.P - unit);
            V dh_b = load(dh + b * P_padded + unit);
            if (b < later.n) dh_b += load(block + (b - b0) * width + j * L);
            if (b >= n) {
              store(dh + b * P_padded + unit, dh_b);
              continue;
            }
            if (p.dy) dh_b += load_upto(p.dy + (p.rows.row(t, b) * p.D + d) * p.P + unit, lanes);
            if (projected) {
              store_upto(dh_rows + (chunk.row(t) + b) * p.P + unit, dh_b, lanes);
              store(dh + b * P_padded + unit, V{});
            } else {
              store(dh + b * P_padded + unit, cell(chunk, t, b, unit, dh_b));
            }
          }
        }
      }
    }
  }

  // What the cells of panel i read, from sequence b on, and the step after has not.
  void add_saved(int64_t t, int64_t b, int64_t i, PrefetchList& prefetch_list) const {
    const int64_t row = p.rows.row(t, b), before = previous_row(t, b), y_row = Cell::saved > 0 ? before : row;
    const int64_t unit = out_panels.first(i), n = out_panels.size(i);
    const auto add = [&](const auto* rows, int64_t size) {
      prefetch_list.add(rows + unit, n, p.rows.stride_b * size);
    };
    if (p.dy) add(p.dy + (row * p.D + d) * p.P, p.D * p.P);
    for (int k = 0; k < Cell::saved; ++k) {
      add(p.s + ((d * R + row) * Cell::saved + k) * p.H, Cell::saved * p.H);
    }
    for (int k = 0; k < C && before >= 0; ++k) add(p.c + ((d * R + before) * C + k) * p.H, C * p.H);
    const bool reads_y = Cell::saved == 0 || Cell::reads_h;
    if (reads_y && y_row >= 0) add(p.y + (y_row * p.D + d) * p.P, p.D * p.P);
  }

  // With a projection the gradient of the cell's output m is dh W_hr.
  void unproject(const Chunk& chunk, int64_t t, Range own, Range batch) {
    alignas(64) Real<T> block[kRowBlock * kPanelVectors * L];
    const int64_t end = std::min(batch.end, p.rows.n(t));
    for (int64_t i = own.begin; i < own.end; ++i) {
      const int64_t width = unit_panels.width(i);
      for (int64_t b0 = batch.begin; b0 < end; b0 += kRowBlock) {
        const int64_t b1 = std::min(b0 + kRowBlock, end);
        multiply(unit_panels, i, descending(t), b1 - b0, p.P, dh_rows + (chunk.row(t) + b0) * p.P, w.W_hr,
                 W_hr, block);
        for (int64_t b = b0; b < b1; ++b) {
          for (int j = 0; j < unit_panels.u(i); ++j) {
            const int64_t unit = unit_panels.first(i) + j * L;
            cell(chunk, t, b, unit, load(block + (b - b0) * width + j * L));
          }
        }
      }
    }
  }

  // Gate gradients of one vector of units. Returns the share of dh that reaches h_prev past W_hh.
  FASTRNN_INLINE V cell(const Chunk& chunk, int64_t t, int64_t b, int64_t unit, V dh_b) {
    constexpr int G = Cell::gates;
    const int64_t lanes = std::min<int64_t>(L, p.H - unit);
    const int64_t row = p.rows.row(t, b);
    V s[std::max(Cell::saved, 1)], u[std::max(U, 1)], dgx_b[G], dgh_b[G], du_b[std::max(U, 1)];
    V h_prev{}, h{}, c_prev[std::max(C, 1)], c_b[std::max(C, 1)], dc_b[std::max(C, 1)], dh_prev{};
    for (int k = 0; k < U; ++k) u[k] = load_upto(w.unit[k] + unit, lanes);
    for (int k = 0; k < Cell::saved; ++k) {
      s[k] = load_upto(p.s + ((d * R + row) * Cell::saved + k) * p.H + unit, lanes);
    }
    if (!projected) {
      // A single step comes without y, unless the cell saves nothing else.
      if (Cell::saved == 0) h = load_upto(p.y + (row * p.D + d) * p.P + unit, lanes);
      if (Cell::reads_h) h_prev = load_upto(previous_h(t, b) + unit, lanes);
    }
    const int64_t c_size = p.rows.B * H_padded;  // of a state
    for (int k = 0; k < C; ++k) {
      c_b[k] = load_upto(p.c + ((d * R + row) * C + k) * p.H + unit, lanes);
      c_prev[k] = previous_c(k, t, b, unit, lanes);
      dc_b[k] = load(dc + k * c_size + b * H_padded + unit);
    }
    Cell::template backward<VectorMath<Real<T>>>(s, u, h_prev, h, c_prev, c_b, dh_b, dc_b, dgx_b, dgh_b, du_b,
                                                 dh_prev);
    for (int k = 0; k < C; ++k) store(dc + k * c_size + b * H_padded + unit, dc_b[k]);
    if constexpr (Cell::projects) {
      if (projected) {
        V m;
        Cell::template output<VectorMath<Real<T>>>(s, u, h_prev, c_b, m);
        store_upto(m_rows + (chunk.row(t) + b) * p.H + unit, m, lanes);
      }
    }
    for (int k = 0; k < U; ++k) {
      store_upto(du + ((chunk.row(t) + b) * U + k) * p.H + unit, du_b[k], lanes);
    }
    const int64_t at = (chunk.row(t) + b) * GH + unit;
    for (int g = 0; g < G; ++g) {
      store_upto(dgx + at + g * p.H, dgx_b[g], lanes);
      if (cells::has_split_gate<Cell>) store_upto(dgh + at + g * p.H, dgh_b[g], lanes);
    }
    return dh_prev;
  }

  // The row that held the state before step t, or -1 if that was the initial state.
  int64_t previous_row(int64_t t, int64_t b) const {
    const int64_t before = direction.reverse ? t + 1 : t - 1;
    const bool initial = before < 0 || before >= p.rows.T || b >= p.rows.n(before);
    return initial ? -1 : p.rows.row(before, b);
  }
  const T* previous_h(int64_t t, int64_t b) const {
    const int64_t row = previous_row(t, b);
    if (row >= 0) return p.y + (row * p.D + d) * p.P;
    return p.h0 ? p.h0 + (d * p.rows.B + b) * p.P : zeros;
  }
  V previous_c(int k, int64_t t, int64_t b, int64_t unit, int64_t lanes) const {
    const int64_t row = previous_row(t, b);
    if (row >= 0) return load_upto(p.c + ((d * R + row) * C + k) * p.H + unit, lanes);
    return p.c0[k] ? load_upto(p.c0[k] + (d * p.rows.B + b) * p.H + unit, lanes) : V{};
  }

  ChunkFactor<T> take_factor(bool wanted, int vectors, int64_t units, const T* first,
                             const T* const* listed = nullptr) {
    const Panels<T> panels{units, 1, vectors, vectors};
    const int64_t size = panels.padded_width() * k_packs<T>(chunk_rows);
    return {panels, first, listed, wanted ? workspace.take<Real<T>>(size) : nullptr};
  }
  // Of a block of gates: enough to pay for reading the other factor, but several blocks a thread. An odd
  // number of cache lines, or the block's rows would share few sets of the cache.
  int block_vectors() const {
    constexpr int64_t kLine = 64, kWidth = sizeof(Real<T>);
    const int64_t block = std::clamp<int64_t>(ceil_div(GH, 2 * plan.threads), 48, 192);
    return static_cast<int>((ceil_div(block * kWidth, kLine) | 1) * kLine / (L * kWidth));
  }

  // Which of several kinds of tasks a task is; `task` becomes its number among them.
  template <size_t kinds>
  static size_t kind_of(const int64_t (&counts)[kinds], int64_t& task) {
    size_t kind = 0;
    for (; task >= counts[kind]; ++kind) task -= counts[kind];
    return kind;
  }

  // The chunk's share of dW_ih, dW_hh, dW_hr, the vectors and dx; and what the next chunk needs of this one, if
  // another `follows`.
  void chunk_gradients(const Chunk& chunk, Team& team, bool add, bool follows, const Later& later) {
    const int64_t K = chunk.count();
    const bool steal_rows = steal || K >= kStolenRows;
    pack_factors(chunk, team, steal_rows);
    const auto& [dgx_factor, dgh_factor, dh_factor, x, h, m] = factors;
    const WeightProduct<T> ih{dgx_factor, x, dW_ih}, hh{dgx == dgh ? dgx_factor : dgh_factor, h, dW_hh};
    const WeightProduct<T> hr{dh_factor, m, dW_hr};
    constexpr int64_t kBiasBlock = 64;
    const int64_t counts[] = {ih.tasks(),
                              hh.tasks(),
                              hr.tasks(),
                              p.dx ? ceil_div(K, kRowBlock) : 0,
                              db_ih.result || db_hh.result ? ceil_div(GH, kBiasBlock) : 0,
                              U * ceil_div(p.H, kBiasBlock),
                              follows};
    int64_t tasks = 0;
    for (int64_t count : counts) tasks += count;
    team.for_each(tasks, steal_rows, false, [&](int64_t task) {
      switch (kind_of(counts, task)) {
        case 0:
          return ih.multiply(K, task, add);
        case 1:
          return hh.multiply(K, task, add);
        case 2:
          return hr.multiply(K, task, add);
        case 3:
          return input_gradient(block_of(task, kRowBlock, K));
        case 4: {
          const Range gates = block_of(task, kBiasBlock, GH);
          if (db_ih.result) sum_rows(K, dgx, GH, gates, db_ih.sum, add);
          if (!db_hh.result) return;
          if (db_ih.result && dgx == dgh) {
            return copy(db_hh.sum + gates.begin, db_ih.sum + gates.begin, gates.end - gates.begin);
          }
          return sum_rows(K, dgh, GH, gates, db_hh.sum, add);
        }
        case 5: {
          const int64_t blocks = ceil_div(p.H, kBiasBlock), k = task / blocks;
          const Range units = block_of(task % blocks, kBiasBlock, p.H);
          if (dunit[k].result) sum_rows(K, du + k * p.H, U * p.H, units, dunit[k].sum, add);
          return;
        }
        default:
          std::memcpy(carry, later.dgh, later.n * GH * sizeof(T));
      }
    });
  }

  void pack_factors(const Chunk& chunk, Team& team, bool steal_rows) {
    const int64_t K = chunk.count();
    // Where the chunk's rows of x and of the hidden state before each step are.
    team.for_each_share(K, [&](Range share) {
      int64_t k = 0;
      for (int64_t t = chunk.begin; t < chunk.end; ++t) {
        const int64_t b0 = chunk.sequences.begin, n = std::min(p.rows.n(t), chunk.sequences.end) - b0;
        const int64_t last = std::min(share.end - k, n);
        for (int64_t i = std::max<int64_t>(share.begin - k, 0); i < last; ++i) {
          x_rows[k + i] = p.x + p.rows.row(t, b0 + i) * p.I;
          h_rows[k + i] = previous_h(t, b0 + i);
        }
        k += n;
      }
    });
    int64_t counts[6], tasks = 0;
    for (size_t i = 0; i < factors.size(); ++i) {
      tasks += counts[i] = factors[i].packed ? ceil_div(K, kRowBlock) : 0;
    }
    team.for_each(tasks, steal_rows, false, [&](int64_t task) {
      const size_t factor = kind_of(counts, task);
      factors[factor].pack(K, block_of(task, kRowBlock, K));
    });
  }

  // dx = dgx W_ih for a block of the chunk's rows, the second direction's added to the first's.
  void input_gradient(Range rows) const {
    alignas(64) Real<T> block[kRowBlock * kPanelVectors * L];
    for (int64_t i = 0; i < input_panels.count(); ++i) {
      const int64_t width = input_panels.width(i), n = input_panels.size(i);
      multiply(input_panels, i, false, rows.end - rows.begin, GH, dgx + rows.begin * GH, w.W_ih, W_ih, block);
      for (int64_t k = rows.begin; k < rows.end; ++k) {
        T* dx = p.dx + (x_rows[k] - p.x) + input_panels.first(i);
        for (int64_t j = 0; j < n; j += L) {
          const V sum = load(block + (k - rows.begin) * width + j);
          store_upto(dx + j, d == 0 ? sum : sum + load_upto(dx + j, n - j), n - j);
        }
      }
    }
  }

  void write_initial(const Team& team) const {
    const Range rows = team.own_share(p.rows.B);
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      const int64_t to = d * p.rows.B + b;
      if (p.dh0) copy(p.dh0 + to * p.P, dh + b * P_padded, p.P);
      for (int k = 0; k < C; ++k) {
        if (p.dc0[k]) copy(p.dc0[k] + to * p.H, dc + (k * p.rows.B + b) * H_padded, p.H);
      }
    }
  }

  void write_sums(const Team& team) const {
    const auto write = [&](const Sum& to) {
      const Range share = team.own_share(to.size);
      if (to.result) copy(to.result + share.begin, to.sum + share.begin, share.end - share.begin);
    };
    for (const Sum* to : {&dW_ih, &dW_hh, &dW_hr, &db_ih, &db_hh}) write(*to);
    for (int k = 0; k < U; ++k) write(dunit[k]);
  }

  const BackwardParams<T>& p;
  const int d;
  const Direction direction;
  const Plan plan;
  const bool steal;
  const Weights<T>& w;
  const bool projected, wants_dh0;
  const int64_t GH, R;
  const Panels<T> out_panels;    // columns of W_hh
  const Panels<T> unit_panels;   // columns of W_hr
  const Panels<T> input_panels;  // columns of W_ih
  const int64_t P_padded, H_padded;
  int64_t chunk_steps, chunk_rows;
  Workspace workspace;
  Real<T>*W_hh = nullptr, *W_ih = nullptr, *W_hr = nullptr;  // packed
  T *dgx, *dgh;                             // [rows of a chunk, GH]; one buffer unless a gate is split
  T* carry = nullptr;                       // [B, GH], dgh of the chunk before, if there are several
  Real<T>* dh;                              // [B, P_padded]
  Real<T>* dc = nullptr;                    // [C, B, H_padded]
  T* du = nullptr;                          // [rows of a chunk, U*H]
  T *dh_rows = nullptr, *m_rows = nullptr;  // [rows of a chunk, P] and [rows of a chunk, H]
  T* zeros;                                 // [max(P, H)]
  const T **x_rows, **h_rows;               // [rows of a chunk]
  std::array<ChunkFactor<T>, 6> factors;    // dgx, dgh unless it is dgx, dh_rows; x, h, m
  Sum dW_ih, dW_hh, dW_hr, db_ih, db_hh;
  std::array<Sum, std::max(U, 1)> dunit;
};

template <class Cell, class T>
void backward(const BackwardParams<T>& p, const Resources& resources) {
  const Plan plan = make_plan<Cell>(p, usable_threads(resources.threads));
  for (int d = 0; d < p.D; ++d) {
    Backward<Cell, T> direction(p, d, plan, resources);
    TaskQueue queue(plan.threads, plan.batch_groups);
    parallel(plan.threads, [&](int rank, int size) {
      Team team(rank, size, queue);
      direction.run(team);
      return team.waited();
    });
  }
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
