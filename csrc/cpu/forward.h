#pragma once

#include <array>
#include <cstring>
#include <memory>
#include <type_traits>

#include "cells/registry.h"
#include "cpu/chunks.h"
#include "cpu/gemm/gemm.h"
#include "cpu/gemm/gemv.h"
#include "cpu/gemm/math.h"
#include "cpu/plan.h"
#include "cpu/threads/team.h"
#include "cpu/workspace.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// The forward of one direction. A chunk of steps at a time: the gates' shares from the input as one
// product over all rows of the chunk, then step after step the product with W_hh and, panel by panel as it
// leaves the tile, the cell.
template <class Cell, class T>
class Forward {
  using V = Vector<Real<T>>;
  static constexpr int G = Cell::gates, C = Cell::cell_states, U = Cell::unit_vectors;
  static constexpr int L = kLanes<Real<T>>;
  // Between steps the states are Real. What the products read is T: the same numbers, or rounded ones.
  static constexpr bool kRounded = !std::is_same_v<T, Real<T>>;

 public:
  Forward(const ForwardParams<T>& params, int d, const Plan& plan, const Resources& resources)
      : p(params),
        d(d),
        direction{p.rows.T, d == 1},
        plan(plan),
        steal(params.rows.B >= kStolenRows),
        packed(p.rows.total() > kUnpackedRows),
        w(p.weights[d]),
        projected(w.W_hr != nullptr),
        saves(p.s != nullptr || p.y_copy != nullptr),
        panels(make_panels<T>(p.H, G, plan.step_rows(p.rows.B), p.P, plan.step_threads())),
        out_panels(make_panels<T>(p.P, 1, plan.step_rows(p.rows.B), p.H, plan.step_threads())),
        H_padded(ceil_div(p.H, L) * L),
        P_padded(ceil_div(p.P, L) * L),
        workspace(resources) {
    const int64_t B = p.rows.B, width = panels.padded_width();
    chunk_steps =
        steps_in_chunk(p.rows, std::max<int64_t>(kChunkBytes / (width * sizeof(Real<T>)), kRowBlock));
    // Short enough that a slow thread is not waited for long.
    if (plan.by_batch()) chunk_steps = std::min(chunk_steps, ceil_div(p.rows.T, kLeastChunks));
    if (packed) {
      used_once = !plan.by_batch() && chunk_steps >= p.rows.T;
      const int64_t columns = used_once ? plan.threads * panels.width(0) : width;
      W_ih = workspace.take<Real<T>>(columns * k_packs<T>(p.I));
      W_hh = workspace.take<Real<T>>(width * k_packs<T>(p.P));
      if (projected) W_hr = workspace.take<Real<T>>(out_panels.padded_width() * k_packs<T>(p.H));
    }
    // Vectors of units may be read from up to one vector past these.
    b_x = workspace.take<Real<T>>(width + L);
    if (cells::has_split_gate<Cell>) b_h = workspace.take<Real<T>>(width + L);
    gx = workspace.take<Real<T>>(chunk_steps * sequences_in_chunk(p.rows) * width + L);
    h[0] = workspace.take<T>(B * P_padded);
    h[1] = workspace.take<T>(B * P_padded);
    if (kRounded && !projected) h_real = workspace.take<Real<T>>(B * P_padded);
    if (C > 0) c = workspace.take<Real<T>>(C * B * H_padded);
    if (projected) m = workspace.take<T>(B * H_padded);
  }

  void run(Team& team) {
    pack(team);
    if (plan.by_batch()) {
      team.for_each(panels.count(), steal, false, [&](int64_t k) {
        pack_for_input(k, panel_of(W_ih, k, p.I));
        pack_for_steps(k);
      });
      const Range all{0, panels.count()}, all_out{0, out_panels.count()};
      const int64_t chunks = ceil_div(p.rows.T, chunk_steps);
      team.for_each_chain(plan.batch_groups, chunks, [&](int64_t group, int64_t number) {
        const Range batch = plan.batch_group(group, p.rows.B);
        const int64_t i0 = number * chunk_steps, i1 = std::min(i0 + chunk_steps, p.rows.T);
        const Chunk chunk = chunk_of(p.rows, direction, i0, i1, {0, p.rows.B});
        input_gates(chunk, all, batch, {w.W_ih, W_ih});
        for (int64_t i = i0; i < i1; ++i) {
          step(chunk, i, all, batch);
          if (projected) project(i, all_out, batch);
        }
      });
    } else {
      const int64_t sequences = sequences_in_chunk(p.rows);
      for (int64_t b = 0; b < p.rows.B; b += sequences) {
        run_by_units(team, {b, std::min(b + sequences, p.rows.B)});
      }
    }
    write_final(team);
  }

 private:
  void run_by_units(Team& team, Range batch) {
    for (int64_t i0 = 0; i0 < p.rows.T; i0 += chunk_steps) {
      const int64_t i1 = std::min(i0 + chunk_steps, p.rows.T);
      const Chunk chunk = chunk_of(p.rows, direction, i0, i1, batch);
      const bool first = i0 == 0 && batch.begin == 0;
      team.for_each(panels.count(), steal, false, [&](int64_t k) {
        // W_hh comes last, so the cache has it when the steps begin.
        Real<T>* panel =
            used_once ? W_ih + team.rank * panels.width(0) * k_packs<T>(p.I) : panel_of(W_ih, k, p.I);
        if (first || used_once) pack_for_input(k, panel);
        input_gates(chunk, {k, k + 1}, batch, {w.W_ih, used_once ? panel : W_ih, used_once});
        if (first) pack_for_steps(k);
      });
      for (int64_t i = i0; i < i1; ++i) {
        fetch_written(h_before(i), p.rows.B * P_padded);
        team.for_each(panels.count(), steal, descending(i),
                      [&](int64_t k) { step(chunk, i, {k, k + 1}, batch); });
        if (projected) {
          team.for_each(out_panels.count(), steal, descending(i),
                        [&](int64_t k) { project(i, {k, k + 1}, batch); });
        }
      }
    }
  }

  static constexpr int64_t kLeastChunks = 8;
  // Rows whose cells are computed at a time: all their gates, then all their outputs. An output waits for its
  // gates, and a processor looks no further ahead than over two LSTM cells; nor does it read past many stores.
  static constexpr int kCellRows = 8;
  // About what a core's second-level cache holds.
  static constexpr int64_t kChunkBytes = 1 << 20;

  // Weights as a product takes them.
  struct StepWeights {
    const T* rows;
    const Real<T>* packed;  // unless only few rows are multiplied: all its panels, or
    bool alone = false;     // one of them
  };

  Real<T>* panel_of(Real<T>* first, int64_t i, int64_t K) const {
    return packed ? first + panels.offset(i) * k_packs<T>(K) : nullptr;
  }
  void pack_for_input(int64_t i, Real<T>* panel) {
    if (packed) pack_transposed(panels, i, w.W_ih, p.I, panel);
    pack_biases(panels, i, w.b_ih, w.b_hh, Cell::whole_gates, b_x, b_h);
  }
  void pack_for_steps(int64_t i) {
    if (packed) pack_transposed(panels, i, w.W_hh, p.P, panel_of(W_hh, i, p.P));
  }

  void pack(Team& team) {
    if (packed && projected) {
      team.for_each(out_panels.count(), steal, false, [&](int64_t i) {
        pack_transposed(out_panels, i, w.W_hr, p.H, W_hr + out_panels.offset(i) * k_packs<T>(p.H));
      });
    }
    // Both buffers: a packed sequence that starts later finds its initial state in whichever is read then.
    team.for_each_share(p.rows.B, [&](Range rows) {
      for (int64_t b = rows.begin; b < rows.end; ++b) {
        for (T* buffer : h) initial_state(p.h0, b, p.P, buffer + b * P_padded);
        if (h_real) initial_state(p.h0, b, p.P, h_real + b * P_padded);
        for (int k = 0; k < C; ++k) initial_state(p.c0[k], b, p.H, c + (k * p.rows.B + b) * H_padded);
      }
    });
  }

  template <class S>
  void initial_state(const T* given, int64_t b, int64_t size, S* state) const {
    if (given) {
      copy(state, given + (d * p.rows.B + b) * size, size);
    } else {
      std::memset(state, 0, size * sizeof(S));
    }
  }

  void multiply(const Panels<T>& of, int64_t i, bool descending, int64_t M, int64_t K, const T* A,
                int64_t a_row, const StepWeights& B, const Destination<Real<T>>& to,
                PrefetchList* prefetch_list = nullptr) const {
    if (packed) {
      multiply_packed(of, i, descending, M, K, A, a_row, kKPack<T>, B.packed, B.alone, to, kc_of(K),
                      prefetch_list);
    } else {
      multiply_unpacked(of, i, M, K, A, a_row, B.rows, to);
    }
  }

  void input_gates(const Chunk& chunk, Range own, Range batch, const StepWeights& W) {
    const int64_t width = panels.padded_width();
    chunk.for_each_run(
        batch, [&](int64_t row, int64_t stride, int64_t chunk_row, int64_t chunk_stride, int64_t count) {
          for (int64_t i = own.begin; i < own.end; ++i) {
            multiply(
                panels, i, false, count, p.I, p.x + row * p.I, stride * p.I, W,
                {gx + chunk_row * width + panels.offset(i), chunk_stride * width, L, b_x + panels.offset(i)});
          }
        });
  }

  // Back and forth: weights that do not all fit the cache are found in it where the last step ended.
  bool descending(int64_t i) const { return !plan.by_batch() && i % 2 == 1; }
  const T* h_before(int64_t i) const { return h[i % 2]; }
  T* h_after(int64_t i) const { return h[(i + 1) % 2]; }
  Range present(int64_t i, Range batch) const {
    return {batch.begin, std::min(batch.end, p.rows.n(direction.time(i)))};
  }

  // Step i of the recurrence: the hidden state after it, or what the projection takes.
  void step(const Chunk& chunk, int64_t i, Range own, Range batch) {
    const int64_t t = direction.time(i);
    const Range rows = present(i, batch);
    T* out = projected ? m : h_after(i);
    alignas(64) Real<T> gh[(kRowBlock * kPanelVectors + 1) * L];
    for (int64_t k = own.begin; k < own.end; ++k) {
      for (int64_t b0 = rows.begin; b0 < rows.end; b0 += kRowBlock) {
        const Range block{b0, std::min(b0 + kRowBlock, rows.end)};
        PrefetchList prefetch_list(block.end - b0);
        if (saves && !projected && prefetch_pays(p.P, block.end - b0)) add_results(t, b0, k, prefetch_list);
        const Real<T>* gx_block = gx + (chunk.row(t) + b0) * panels.padded_width() + panels.offset(k);
        Destination<Real<T>> to{gh, panels.width(k), L};
        if (!cells::has_split_gate<Cell>) to.plus = gx_block, to.plus_stride = panels.padded_width();
        multiply(panels, k, descending(i), block.end - b0, p.P, h_before(i) + b0 * P_padded, P_padded,
                 {w.W_hh, W_hh}, to, &prefetch_list);
        for (int j = 0; j < panels.u(k); ++j) cells(t, k, j, block, gx_block, gh, h_before(i), out);
      }
    }
  }

  // What the cells of panel i write for the backward, from sequence b on.
  void add_results(int64_t t, int64_t b, int64_t i, PrefetchList& prefetch_list) const {
    const int64_t R = p.rows.total(), row = p.rows.row(t, b);
    const int64_t unit = panels.first(i), n = panels.size(i);
    const auto add = [&](const auto* rows, int64_t size) {
      prefetch_list.add(rows + unit, n, p.rows.stride_b * size);
    };
    for (const T* y : {p.y, p.y_copy}) {
      if (y) add(y + (row * p.D + d) * p.P, p.D * p.P);
    }
    for (int k = 0; p.c && k < C; ++k) add(p.c + ((d * R + row) * C + k) * p.H, C * p.H);
    for (int k = 0; p.s && k < Cell::saved; ++k) {
      add(p.s + ((d * R + row) * Cell::saved + k) * p.H, Cell::saved * p.H);
    }
  }

  // Vector j of panel i. gx, gh: the panel's columns of the gates' shares, from row `rows.begin` on. Without a
  // split gate only their sum is wanted, and that is gh.
  void cells(int64_t t, int64_t i, int j, Range rows, const Real<T>* gx, const Real<T>* gh, const T* h_prev,
             T* out) {
    const int64_t unit = panels.first(i) + j * L, n = std::min<int64_t>(L, p.H - unit);
    const int64_t gate = panels.size(i);  // from one gate to the next
    const int64_t R = p.rows.total(), row = p.rows.row(t, rows.begin);
    V bias_h[G], u[std::max(U, 1)];
    for (int k = 0; k < U; ++k) u[k] = load_upto(w.unit[k] + unit, n);
    for (int g = Cell::whole_gates; g < G; ++g) {
      bias_h[g] = load(b_h + panels.offset(i) + j * L + g * gate);
    }
    // Positions that go from row to row: this loop is short, and index arithmetic would be half of it.
    gx += j * L;
    gh += j * L;
    int64_t at_h = rows.begin * P_padded + unit, at_c = rows.begin * H_padded + unit;
    int64_t at_y = (row * p.D + d) * p.P + unit;
    int64_t at_saved_c = (d * R + row) * C * p.H + unit, at_saved = (d * R + row) * Cell::saved * p.H + unit;
    const int64_t c_size = p.rows.B * H_padded;  // of a state
    const auto compute = [&](auto count) __attribute__((always_inline)) {
      constexpr int N = decltype(count)::value;
      using Math = VectorMath<Real<T>>;
      V s[N][std::max(Cell::saved, 1)], c_state[N][std::max(C, 1)];
#pragma GCC unroll 8
      for (int r = 0; r < N; ++r) {
        V x[G], h[G];
        for (int g = 0; g < G; ++g) {
          if (cells::has_split_gate<Cell>) x[g] = load(gx + g * gate);
          h[g] = load(gh + g * gate);
          if (g >= Cell::whole_gates) h[g] += bias_h[g];
        }
        for (int k = 0; k < C; ++k) c_state[r][k] = load(c + k * c_size + at_c + r * H_padded);
        if constexpr (cells::has_split_gate<Cell>) {
          Cell::template activate<Math>(x, h, u, s[r], c_state[r]);
        } else {
          Cell::template activate<Math>(h, u, s[r], c_state[r]);
        }
        gx += panels.padded_width();
        gh += panels.width(i);
      }
#pragma GCC unroll 8
      for (int r = 0; r < N; ++r) {
        // With a projection h_prev has other units; no such cell uses it here.
        const V h_old = projected ? V{} : kRounded ? load(h_real + at_h) : load(h_prev + at_h);
        V h_out;
        Cell::template output<Math>(s[r], u, h_old, c_state[r], h_out);
        store(out + at_c, h_out);
        if (kRounded && !projected) store(h_real + at_h, h_out);
        if (!projected) store_upto(p.y + at_y, h_out, n);
        if (!projected && p.y_copy) store_upto(p.y_copy + at_y, h_out, n);
        for (int k = 0; k < C; ++k) store(c + k * c_size + at_c, c_state[r][k]);
        for (int k = 0; p.c && k < C; ++k) store_upto(p.c + at_saved_c + k * p.H, c_state[r][k], n);
        if (Cell::saved > 0 && p.s) {
          for (int k = 0; k < Cell::saved; ++k) store_upto(p.s + at_saved + k * p.H, s[r][k], n);
        }
        at_h += P_padded;
        at_c += H_padded;
        at_y += p.rows.stride_b * p.D * p.P;
        at_saved_c += p.rows.stride_b * C * p.H;
        at_saved += p.rows.stride_b * Cell::saved * p.H;
      }
    };
    int64_t b = rows.begin;
    for (; b + kCellRows <= rows.end; b += kCellRows) compute(std::integral_constant<int, kCellRows>{});
    for (; b < rows.end; ++b) compute(std::integral_constant<int, 1>{});
  }

  void project(int64_t i, Range own, Range batch) {
    const int64_t t = direction.time(i);
    const Range rows = present(i, batch);
    alignas(64) Real<T> block[kRowBlock * kPanelVectors * L];
    for (int64_t k = own.begin; k < own.end; ++k) {
      const int64_t width = out_panels.width(k), unit = out_panels.first(k);
      for (int64_t b0 = rows.begin; b0 < rows.end; b0 += kRowBlock) {
        const int64_t b1 = std::min(b0 + kRowBlock, rows.end);
        multiply(out_panels, k, descending(i), b1 - b0, p.H, m + b0 * H_padded, H_padded, {w.W_hr, W_hr},
                 {block, width, L});
        for (int64_t b = b0; b < b1; ++b) {
          const int64_t n = std::min(width, p.P - unit);
          copy(h_after(i) + b * P_padded + unit, block + (b - b0) * width, n);
          for (T* y : {p.y, p.y_copy}) {
            if (y) copy(y + (p.rows.row(t, b) * p.D + d) * p.P + unit, block + (b - b0) * width, n);
          }
        }
      }
    }
  }

  void write_final(const Team& team) const {
    const Range rows = team.own_share(p.rows.B);
    int64_t steps = p.rows.T;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      if (p.rows.packed() && !direction.reverse) {
        while (p.rows.n(steps - 1) <= b) --steps;  // sorted: later sequences are shorter
      }
      const int64_t to = d * p.rows.B + b;
      if (p.hn) copy(p.hn + to * p.P, h[steps % 2] + b * P_padded, p.P);
      for (int k = 0; k < C; ++k) copy(p.cn[k] + to * p.H, c + (k * p.rows.B + b) * H_padded, p.H);
    }
  }

  const ForwardParams<T>& p;
  const int d;
  const Direction direction;
  const Plan plan;
  const bool steal, packed;
  const Weights<T>& w;
  const bool projected;
  const bool saves;            // for the backward
  const Panels<T> panels;      // gates of the hidden units
  const Panels<T> out_panels;  // projected units
  const int64_t H_padded, P_padded;
  int64_t chunk_steps;
  bool used_once = false;  // the packed W_ih: each panel by the thread that packs it
  Workspace workspace;
  Real<T>*W_ih = nullptr, *W_hh = nullptr, *W_hr = nullptr;  // packed
  Real<T>*b_x, *b_h = nullptr;  // one row of panels each; what is added to either product
  Real<T>* gx;                  // [rows of a chunk, padded_width]
  std::array<T*, 2> h;          // [B, P_padded], read and written in turn
  Real<T>* h_real = nullptr;    // [B, P_padded], h before it was rounded
  Real<T>* c = nullptr;         // [C, B, H_padded]
  T* m = nullptr;               // [B, H_padded], o tanh(c) before the projection
};

template <class Cell, class T>
void forward(const ForwardParams<T>& p, const Resources& resources) {
  const int usable = usable_threads(resources.threads);
  // Two directions run side by side, each with half of the threads.
  const bool side_by_side = p.D == 2 && usable >= 2 && work_of<Cell>(p) >= kThreadWork;
  const Plan each = make_plan<Cell>(p, side_by_side ? usable / 2 : usable);
  const int threads = side_by_side ? 2 * each.threads : each.threads;
  Forward<Cell, T> first(p, 0, each, resources);
  const auto second = p.D == 2 ? std::make_unique<Forward<Cell, T>>(p, 1, each, resources) : nullptr;
  Forward<Cell, T>* const directions[] = {&first, second.get()};
  TaskQueue queues[2]{{threads, each.batch_groups}, {threads, each.batch_groups}};
  parallel(threads, [&](int rank, int size) {
    int64_t waited = 0;
    if (side_by_side && size >= 2) {
      const int half = size / 2, d = rank >= half;
      Team team(d ? rank - half : rank, d ? size - half : half, queues[d]);
      directions[d]->run(team);
      waited = team.waited();
    } else {
      for (int d = 0; d < p.D; ++d) {
        Team team(rank, size, queues[d]);
        directions[d]->run(team);
        waited += team.waited();
      }
    }
    return waited;
  });
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
