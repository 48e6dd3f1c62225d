#pragma once

#include <algorithm>

#include "core/params.h"
#include "cpu/cell_block.h"
#include "cpu/chunks.h"
#include "cpu/engine.h"
#include "cpu/gemm/packing.h"
#include "cpu/gemm/simd.h"
#include "cpu/plan.h"
#include "cpu/range.h"
#include "cpu/threads/team.h"
#include "cpu/tuning.h"
#include "cpu/workspace.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// What the forward and the backward of one direction share. Params: ForwardParams<T> or BackwardParams<T>.
template <class T, class Params>
class DirectionBase {
 protected:
  using V = Vector<Real<T>>;
  static constexpr int L = kLanes<Real<T>>;  // of a vector register

  DirectionBase(const EngineCell<T>& cell, const Params& params, int d, const Plan& plan,
                const Resources& resources)
      : cell_(cell.functions),
        info_(cell.info),
        G(info_.gates.size()),
        late_(info_.late_gates),
        C(info_.states.size() - 1),
        U(info_.unit_vectors()),
        p_(params),
        d_(d),
        direction_{p_.rows.T, d == 1},
        plan_(plan),
        steal_(p_.rows.B >= tuning::kStolenRows ? Steal::at_once : Steal::if_late),
        w_(p_.weights[d]),
        split_(info_.whole_gates < G),
        has_W_ih_(info_.has(cells::ParameterKind::input_matrix)),
        has_W_hh_(info_.has(cells::ParameterKind::state_matrix)),
        projected_(w_.W_hr != nullptr),
        zoned_(p_.noise.zoned()),
        noisy_(p_.noise.is_there()),
        R_(p_.rows.total()),
        GH_(G * p_.H),
        H_padded_(ceil_div(p_.H, L) * L),
        P_padded_(ceil_div(p_.P, L) * L),
        workspace_(resources) {}

  // The step before step t in the recurrence, and that after it, or -1.
  int64_t time_before(int64_t t) const { return in_time(direction_.reverse ? t + 1 : t - 1); }
  int64_t time_after(int64_t t) const { return in_time(direction_.reverse ? t - 1 : t + 1); }
  // Does sequence b begin anew between step t and the one before it in the recurrence? The reset stands at the later
  // of both in time. A step that the sequence does not have has none.
  bool begins_anew(int64_t t, int64_t b) const {
    const int64_t later = direction_.reverse ? t + 1 : t;
    return p_.resets && later >= 0 && later < p_.rows.T && b < p_.rows.n(later) &&
           p_.resets[p_.rows.row(later, b)];
  }
  // Scratch memory.
  template <class S>
  void take(S*& pointer, int64_t count) {
    pointer = workspace_.take<S>(count);
  }

  // Panels of `units` for the products of a step, sums of K terms.
  template <class W = T>
  Panels<W> step_panels(int64_t units, int64_t K) const {
    return make_panels<W>(units, 1, plan_.step_rows(p_.rows.B), K, plan_.step_threads());
  }
  // The sequences of a batch group.
  Range batch_group(int64_t group) const {
    const int64_t B = p_.rows.B, groups = plan_.batch_groups;
    return {B * group / groups, B * (group + 1) / groups};
  }
  // Back and forth: weights that do not all fit the cache are found in it where the last step ended.
  Order order_of(int64_t step) const {
    return !plan_.by_batch() && step % 2 == 1 ? Order::descending : Order::ascending;
  }
  // Calls f(sequences) for the sequences of one chunk after the other.
  template <class F>
  void for_each_batch(const F& f) const {
    const int64_t B = p_.rows.B, sequences = sequences_in_chunk(p_.rows);
    for (int64_t b = 0; b < B; b += sequences) f(Range{b, std::min(b + sequences, B)});
  }

  int64_t in_time(int64_t t) const { return t < p_.rows.T ? t : -1; }

  const CellFunctions<T>& cell_;
  const cells::CellInfo& info_;
  const int G, late_, C, U;  // gates, the late ones of them, states beside h, and vectors of a unit
  const Params& p_;
  const int d_;
  const Direction direction_;
  const Plan plan_;
  const Steal steal_;
  const Weights<T>& w_;
  const bool split_;  // is there a gate whose share from the hidden state is not just added?
  const bool has_W_ih_, has_W_hh_, projected_;
  const bool zoned_, noisy_;  // with zoneout; with that or dropout of what W_hh multiplies
  const int64_t R_, GH_;      // all rows; columns of all gates
  const int64_t H_padded_, P_padded_;
  Workspace workspace_;
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
