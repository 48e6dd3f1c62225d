#pragma once

// The plan of a layer as an instruction set sees it: the sizes of its panels and tiles come to it.

#include <algorithm>

#include "core/params.h"
#include "cpu/gemm/micro_kernel.h"
#include "cpu/gemm/packing.h"
#include "cpu/plan.h"
#include "cpu/range.h"
#include "cpu/tuning.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// W: what the weights are.
template <class W>
Problem problem_of(const cells::CellInfo& cell, const LayerSizes& sizes) {
  return {.sizes = sizes,
          .gates = cell.gates.size(),
          .number_bytes = sizeof(W),
          .registers = kRegisters,
          .speed = std::is_same_v<W, int8_weight> ? tuning::kInt8Speed.of(kRegisters) : 1};
}
template <class T, class W = T>
Problem problem_of(const cells::CellInfo& cell, const LayerParams<T>& p) {
  return problem_of<W>(cell, {.T = p.rows.T,
                              .B = p.rows.B,
                              .I = p.I,
                              .H = p.H,
                              .P = p.P,
                              .D = p.D,
                              .rows = p.rows.total(),
                              .packed = p.rows.packed()});
}

// Panels for the product of a step with W_hh: of the gates of hidden units, or of the hidden state's gradient.
template <class T>
Panels<T> W_hh_panels(int gates, const Plan& plan, Pass pass, int64_t B, int64_t H, int64_t P) {
  const int64_t rows = plan.step_rows(B);
  return pass == Pass::forward ? make_panels<T>(H, gates, rows, P, plan.step_threads())
                               : make_panels<T>(P, 1, rows, gates * H, plan.step_threads());
}

template <class T>
LayerPlan plan_layer(const cells::CellInfo& cell, const LayerSizes& sizes, Pass pass, int threads) {
  const Plan plan = make_plan(problem_of<T>(cell, sizes), pass, threads);
  const Panels<T> panels = W_hh_panels<T>(cell.gates.size(), plan, pass, sizes.B, sizes.H, sizes.P);
  const int64_t rows = std::min(plan.step_rows(sizes.B), tuning::kRowBlock);
  const int width = panels.micropanel(0, 0).nv;
  const int64_t K = pass == Pass::forward ? sizes.P : cell.gates.size() * sizes.H;
  const int nv = first_part<T>(width, rows, K, width);
  return {
      .plan = plan,
      .product = {.packed = sizes.rows > tuning::kUnpackedRows || (pass == Pass::backward && kKPack<T> > 1),
                  .panels = panels.count(),
                  .panel_units = panels.size(0),
                  .tile_rows = static_cast<int>(ceil_div(rows, ceil_div(rows, max_mr<T>(nv)))),
                  .tile_vectors = nv,
                  .lanes = kLanes<Real<T>>}};
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
