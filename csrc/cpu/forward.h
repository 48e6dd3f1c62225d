#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>

#include "cpu/chunks.h"
#include "cpu/direction_base.h"
#include "cpu/gemm/gemm.h"
#include "cpu/gemm/gemv.h"
#include "cpu/layer_plan.h"
#include "cpu/plan.h"
#include "cpu/threads/team.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// The forward of one direction. A chunk of steps at a time: the gates' shares from the input as one product over
// all rows of the chunk, then step after step the product with W_hh and, panel by panel as it leaves the tile, the
// cell.
template <class T>
class Forward : DirectionBase<T, ForwardParams<T>> {
  using Base = DirectionBase<T, ForwardParams<T>>;
  using Base::C, Base::G, Base::L, Base::U, Base::cell_, Base::info_;
  using Base::direction_, Base::plan_, Base::steal_, Base::d_, Base::p_, Base::w_, Base::projected_;
  using Base::R_, Base::H_padded_, Base::P_padded_;
  using Base::take, Base::batch_group, Base::step_panels, Base::order_of, Base::for_each_batch;
  using typename Base::V;
  // Between steps the states are Real. What the products read is T: the same numbers, or rounded ones.
  static constexpr bool kRounded = !std::is_same_v<T, Real<T>>;

 public:
  Forward(const EngineCell<T>& cell, const ForwardParams<T>& params, int d, const Plan& plan,
          const Resources& resources)
      : Base(cell, params, d, plan, resources),
        split_(info_.whole_gates < G),
        packed_(R_ > tuning::kUnpackedRows),
        saves_(p_.s != nullptr || p_.y_copy != nullptr),
        panels_(W_hh_panels<T>(G, plan_, Pass::forward, p_.rows.B, p_.H, p_.P)),
        W_ih_{panels_, p_.I},
        W_hh_{panels_, p_.P},
        W_hr_{step_panels(p_.P, p_.H), p_.H} {
    const int64_t B = p_.rows.B, width = panels_.padded_width();
    chunk_steps_ = steps_in_chunk(
        p_.rows, std::max<int64_t>(tuning::kForwardChunkBytes / (width * sizeof(Real<T>)), kRowBlock));
    if (plan_.by_batch()) chunk_steps_ = std::min(chunk_steps_, ceil_div(p_.rows.T, tuning::kLeastChunks));
    if (packed_) {
      used_once_ = !plan_.by_batch() && chunk_steps_ >= p_.rows.T;
      take(W_ih_.data, used_once_ ? plan_.threads * panels_.width(0) * W_ih_.rows() : W_ih_.size());
      take(W_hh_.data, W_hh_.size());
      if (projected_) take(W_hr_.data, W_hr_.size());
    }
    // Vectors of units may be read from up to one vector past these.
    take(b_x_, width + L);
    if (split_) take(b_h_, width + L);
    take(gx_, chunk_steps_ * sequences_in_chunk(p_.rows) * width + L);
    take(h_[0], B * P_padded_);
    take(h_[1], B * P_padded_);
    if (kRounded && !projected_) take(h_real_, B * P_padded_);
    if (C > 0) take(c_, C * B * H_padded_);
    if (projected_) take(m_, B * H_padded_);
  }

  void run(Team& team) {
    prepare(team);
    if (plan_.by_batch()) {
      run_by_batch(team);
    } else {
      for_each_batch([&](Range batch) { run_by_units(team, batch); });
    }
    write_final(team);
  }

 private:
  void run_by_batch(Team& team) {
    team.for_each(panels_.count(), steal_, Order::ascending, [&](int64_t panel) {
      pack_for_input(panel, W_ih_);
      pack_for_steps(panel);
    });
    const Range all{0, panels_.count()}, all_out{0, W_hr_.panels.count()};
    const int64_t chunks = ceil_div(p_.rows.T, chunk_steps_);
    team.for_each_chain(plan_.batch_groups, chunks, [&](int64_t group, int64_t number) {
      const Range batch = batch_group(group);
      const int64_t i0 = number * chunk_steps_, i1 = std::min(i0 + chunk_steps_, p_.rows.T);
      const Chunk chunk = chunk_of(p_.rows, direction_, i0, i1, {0, p_.rows.B});
      input_gates(chunk, all, batch, W_ih_);
      for (int64_t i = i0; i < i1; ++i) {
        step(chunk, i, all, batch);
        if (projected_) project(i, all_out, batch);
      }
    });
  }

  void run_by_units(Team& team, Range batch) {
    PackedMatrix<T> W = W_ih_;
    if (used_once_) {
      // Each panel is used by the thread that packs it, and each thread has room for one.
      W.single_panel = true;
      W.data += team.rank * panels_.width(0) * W.rows();
    }
    for (int64_t i0 = 0; i0 < p_.rows.T; i0 += chunk_steps_) {
      const int64_t i1 = std::min(i0 + chunk_steps_, p_.rows.T);
      const Chunk chunk = chunk_of(p_.rows, direction_, i0, i1, batch);
      const bool first = i0 == 0 && batch.begin == 0;
      team.for_each(panels_.count(), steal_, Order::ascending, [&](int64_t panel) {
        // W_hh comes last, so the cache has it when the steps begin.
        if (first || used_once_) pack_for_input(panel, W);
        input_gates(chunk, {panel, panel + 1}, batch, W);
        if (first) pack_for_steps(panel);
      });
      for (int64_t i = i0; i < i1; ++i) {
        fetch_written(h_before(i), p_.rows.B * P_padded_);
        team.for_each(panels_.count(), steal_, order_of(i),
                      [&](int64_t panel) { step(chunk, i, {panel, panel + 1}, batch); });
        if (projected_) {
          team.for_each(W_hr_.panels.count(), steal_, order_of(i),
                        [&](int64_t panel) { project(i, {panel, panel + 1}, batch); });
        }
      }
    }
  }

  void pack_for_input(int64_t panel, const PackedMatrix<T>& W) {
    if (packed_) pack_transposed(W, panel, w_.W_ih);
    pack_biases(panels_, panel, w_.b_ih, w_.b_hh, info_.whole_gates, b_x_, b_h_);
  }
  void pack_for_steps(int64_t panel) {
    if (packed_) pack_transposed(W_hh_, panel, w_.W_hh);
  }

  void prepare(Team& team) {
    if (packed_ && projected_) {
      team.for_each(W_hr_.panels.count(), steal_, Order::ascending,
                    [&](int64_t panel) { pack_transposed(W_hr_, panel, w_.W_hr); });
    }
    // Both buffers: a packed sequence that starts later finds its initial state in whichever is read then.
    team.for_each_share(p_.rows.B, [&](Range rows) {
      for (int64_t b = rows.begin; b < rows.end; ++b) {
        for (T* buffer : h_) initial_state(p_.h0, b, p_.P, buffer + b * P_padded_);
        if (h_real_) initial_state(p_.h0, b, p_.P, h_real_ + b * P_padded_);
        for (int state = 0; state < C; ++state) {
          initial_state(p_.c0[state], b, p_.H, c_ + (state * p_.rows.B + b) * H_padded_);
        }
      }
    });
  }

  template <class S>
  void initial_state(const T* given, int64_t b, int64_t size, S* state) const {
    if (given) {
      copy(state, given + (d_ * p_.rows.B + b) * size, size);
    } else {
      std::memset(state, 0, size * sizeof(S));
    }
  }

  // A product with the weights W, packed unless only few rows are multiplied.
  FASTRNN_INLINE void multiply(const T* W, const PanelProduct<T>& product) const {
    if (packed_) {
      multiply_packed(product);
    } else {
      multiply_unpacked(product.A, W, product.B.panels, product.panel, product.to);
    }
  }

  void input_gates(const Chunk& chunk, Range own, Range batch, const PackedMatrix<T>& W) {
    const int64_t width = panels_.padded_width();
    chunk.for_each_run(
        batch, [&](int64_t row, int64_t stride, int64_t chunk_row, int64_t chunk_stride, int64_t count) {
          for (int64_t panel = own.begin; panel < own.end; ++panel) {
            const int64_t column = panels_.offset(panel);
            multiply(w_.W_ih,
                     {.A = {.data = p_.x + row * p_.I, .M = count, .K = p_.I, .row_stride = stride * p_.I},
                      .B = W,
                      .panel = panel,
                      .to = {gx_ + chunk_row * width + column, chunk_stride * width, L, b_x_ + column},
                      .kc = kc_of(p_.I)});
          }
        });
  }

  const T* h_before(int64_t i) const { return h_[i % 2]; }
  T* h_after(int64_t i) const { return h_[(i + 1) % 2]; }
  Range present(int64_t i, Range batch) const {
    return {batch.begin, std::min(batch.end, p_.rows.n(direction_.time(i)))};
  }

  // Step i of the recurrence: the hidden state after it, or what the projection takes.
  void step(const Chunk& chunk, int64_t i, Range own, Range batch) {
    const int64_t t = direction_.time(i);
    const Range rows = present(i, batch);
    T* out = projected_ ? m_ : h_after(i);
    alignas(64) Real<T> gh[(kRowBlock * kPanelVectors + 1) * L];
    for (int64_t panel = own.begin; panel < own.end; ++panel) {
      for (int64_t b0 = rows.begin; b0 < rows.end; b0 += kRowBlock) {
        const Range block{b0, std::min(b0 + kRowBlock, rows.end)};
        const int64_t count = block.end - b0;
        PrefetchList prefetch_list(count);
        if (saves_ && !projected_ && prefetch_pays(p_.P, count)) add_results(t, b0, panel, prefetch_list);
        const Real<T>* gx_block = gx_ + (chunk.row(t) + b0) * panels_.padded_width() + panels_.offset(panel);
        Destination<Real<T>> to{gh, panels_.width(panel), L};
        if (!split_) to.plus = gx_block, to.plus_stride = panels_.padded_width();
        multiply(w_.W_hh,
                 {.A = {.data = h_before(i) + b0 * P_padded_, .M = count, .K = p_.P, .row_stride = P_padded_},
                  .B = W_hh_,
                  .panel = panel,
                  .order = order_of(i),
                  .to = to,
                  .kc = kc_of(p_.P),
                  .prefetch_list = &prefetch_list});
        cell_.forward(cell_block(t, panel, block, gx_block, gh, h_before(i), out));
      }
    }
  }

  // What the cells of a panel write for the backward, from sequence b on.
  void add_results(int64_t t, int64_t b, int64_t panel, PrefetchList& prefetch_list) const {
    const int64_t row = p_.rows.row(t, b);
    const int64_t unit = panels_.first(panel), n = panels_.size(panel);
    const auto add = [&](const auto* rows, int64_t size) {
      prefetch_list.add(rows + unit, n, p_.rows.stride_b * size);
    };
    for (const T* y : {p_.y, p_.y_copy}) {
      if (y) add(y + (row * p_.D + d_) * p_.P, p_.D * p_.P);
    }
    for (int state = 0; p_.c && state < C; ++state) {
      add(p_.c + ((d_ * R_ + row) * C + state) * p_.H, C * p_.H);
    }
    for (int saved = 0; p_.s && saved < info_.saved; ++saved) {
      add(p_.s + ((d_ * R_ + row) * info_.saved + saved) * p_.H, info_.saved * p_.H);
    }
  }

  // A panel of some sequences. gx, gh: the panel's columns of the gates' shares, from row `rows.begin` on.
  ForwardBlock<T> cell_block(int64_t t, int64_t panel, Range rows, const Real<T>* gx, const Real<T>* gh,
                             const T* h_prev, T* out) const {
    const int64_t unit = panels_.first(panel), row = p_.rows.row(t, rows.begin);
    const int64_t at_h = rows.begin * P_padded_ + unit, at_c = rows.begin * H_padded_ + unit;
    ForwardBlock<T> block;
    block.rows = rows.end - rows.begin;
    block.units = panels_.size(panel);
    for (int vector = 0; vector < U; ++vector) block.unit[vector] = w_.unit[vector] + unit;
    block.gx = {gx, panels_.padded_width()};
    block.gh = {gh, panels_.width(panel)};
    block.gate = panels_.size(panel);
    if (split_) block.bias_h = b_h_ + panels_.offset(panel);
    block.out = {out + at_c, H_padded_};
    if (!projected_) {
      if constexpr (kRounded) {
        block.h_prev = {h_real_ + at_h, P_padded_};
        block.h_real = {h_real_ + at_h, P_padded_};
      } else {
        block.h_prev = {h_prev + at_h, P_padded_};
      }
      const int64_t at_y = (row * p_.D + d_) * p_.P + unit, y_stride = p_.rows.stride_b * p_.D * p_.P;
      block.y = {p_.y + at_y, y_stride};
      if (p_.y_copy) block.y_copy = {p_.y_copy + at_y, y_stride};
    }
    if (C > 0) block.c = {c_ + at_c, H_padded_};
    block.c_next = p_.rows.B * H_padded_;
    const auto saved = [&](Real<T>* numbers, int64_t count) -> RowsAt<Real<T>> {
      if (!numbers || count == 0) return {};
      return {numbers + (d_ * R_ + row) * count * p_.H + unit, p_.rows.stride_b * count * p_.H};
    };
    block.saved_s = saved(p_.s, info_.saved);
    block.saved_c = saved(p_.c, C);
    block.saved_next = p_.H;
    return block;
  }

  void project(int64_t i, Range own, Range batch) {
    const int64_t t = direction_.time(i);
    const Range rows = present(i, batch);
    const Panels<T>& panels = W_hr_.panels;
    alignas(64) Real<T> block[kRowBlock * kPanelVectors * L];
    for (int64_t panel = own.begin; panel < own.end; ++panel) {
      const int64_t width = panels.width(panel), unit = panels.first(panel);
      for (int64_t b0 = rows.begin; b0 < rows.end; b0 += kRowBlock) {
        const int64_t b1 = std::min(b0 + kRowBlock, rows.end);
        multiply(w_.W_hr,
                 {.A = {.data = m_ + b0 * H_padded_, .M = b1 - b0, .K = p_.H, .row_stride = H_padded_},
                  .B = W_hr_,
                  .panel = panel,
                  .order = order_of(i),
                  .to = {block, width, L},
                  .kc = kc_of(p_.H)});
        for (int64_t b = b0; b < b1; ++b) {
          const int64_t n = std::min(width, p_.P - unit);
          copy(h_after(i) + b * P_padded_ + unit, block + (b - b0) * width, n);
          for (T* y : {p_.y, p_.y_copy}) {
            if (y) copy(y + (p_.rows.row(t, b) * p_.D + d_) * p_.P + unit, block + (b - b0) * width, n);
          }
        }
      }
    }
  }

  void write_final(const Team& team) const {
    const Range rows = team.own_share(p_.rows.B);
    int64_t steps = p_.rows.T;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      if (p_.rows.packed() && !direction_.reverse) {
        while (p_.rows.n(steps - 1) <= b) --steps;  // sorted: later sequences are shorter
      }
      const int64_t to = d_ * p_.rows.B + b;
      if (p_.hn) copy(p_.hn + to * p_.P, h_[steps % 2] + b * P_padded_, p_.P);
      for (int state = 0; state < C; ++state) {
        copy(p_.cn[state] + to * p_.H, c_ + (state * p_.rows.B + b) * H_padded_, p_.H);
      }
    }
  }

  const bool split_;  // is there a gate whose share from the hidden state is not just added?
  const bool packed_;
  const bool saves_;        // for the backward
  const Panels<T> panels_;  // gates of the hidden units
  int64_t chunk_steps_;
  bool used_once_ = false;  // the packed W_ih: each panel by the thread that packs it
  PackedMatrix<T> W_ih_, W_hh_, W_hr_;
  Real<T>*b_x_, *b_h_ = nullptr;  // one row of panels each; what is added to either product
  Real<T>* gx_;                   // [rows of a chunk, padded_width]
  T* h_[2];                       // [B, P_padded], read and written in turn
  Real<T>* h_real_ = nullptr;     // [B, P_padded], h before it was rounded
  Real<T>* c_ = nullptr;          // [C, B, H_padded]
  T* m_ = nullptr;                // [B, H_padded], o tanh(c) before the projection
};

template <class T>
void forward(const EngineCell<T>& cell, const ForwardParams<T>& p, const Resources& resources) {
  const Plan plan = make_plan(problem_of(cell.info, p), Pass::forward, usable_threads(resources.threads));
  const int threads = plan.team_threads();
  Forward<T> first(cell, p, 0, plan, resources);
  const auto second = p.D == 2 ? std::make_unique<Forward<T>>(cell, p, 1, plan, resources) : nullptr;
  Forward<T>* const directions[] = {&first, second.get()};
  TaskQueue queues[2]{{threads, plan.batch_groups}, {threads, plan.batch_groups}};
  parallel(threads, [&](int rank, int size) {
    int64_t waited = 0;
    if (plan.side_by_side && size >= 2) {
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
