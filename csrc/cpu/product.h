#pragma once

// A product with packed weights and nothing else: what a frozen layer whose cell takes the gates' shares from its input
// makes of that.

#include <algorithm>

#include "cpu/engine.h"
#include "cpu/frozen_panels.h"
#include "cpu/gemm/gemm.h"
#include "cpu/threads/team.h"
#include "cpu/tuning.h"
#include "cpu/workspace.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class T, class W>
void multiply_rows(const ProductParams<T>& p, const Resources& resources) {
  constexpr int64_t L = kLanes<Real<T>>;
  const Panels<W> panels = frozen_panels<T, W>(p.N, 1);
  const PackedMatrix<W> B{panels, p.K, reinterpret_cast<Real<W>*>(const_cast<char*>(p.packed))};
  Workspace workspace(resources);
  Left<W>* quantized = nullptr;
  float* scales = nullptr;
  if constexpr (std::is_same_v<W, int8_weight>) {
    quantized = workspace.take<Left<W>>(p.R * quantized_stride(p.K));
    scales = workspace.take<float>(p.R);
  }
  const int64_t work = p.R * p.K * p.N / tuning::kThreadWork;
  const auto threads = static_cast<int>(std::clamp<int64_t>(work, 1, usable_threads(resources.threads)));
  TaskQueue queue{threads, 0};
  parallel(threads, [&](int rank, int size) {
    Team team(rank, size, queue);
    if constexpr (std::is_same_v<W, int8_weight>) {
      team.for_each_share(p.R, [&](Range rows) {
        for (int64_t r = rows.begin; r < rows.end; ++r) {
          scales[r] = quantize(p.x + r * p.K, p.K, quantized + r * quantized_stride(p.K));
        }
      });
    }
    const int64_t blocks = ceil_div(p.R, tuning::kRowBlock);
    team.for_each(panels.count() * blocks, Steal::at_once, Order::ascending, [&](int64_t task) {
      const int64_t panel = task / blocks, width = panels.width(panel);
      const Range rows = block_of(task % blocks, tuning::kRowBlock, p.R);
      alignas(64) Real<T> block[tuning::kRowBlock * kPanelColumns];
      LeftFactor<W> A{.data = nullptr, .M = rows.end - rows.begin, .K = p.K, .row_stride = p.K};
      if constexpr (std::is_same_v<W, int8_weight>) {
        A.K = whole_packs<W>(p.K);
        A.row_stride = quantized_stride(p.K);
        A.data = quantized + rows.begin * A.row_stride;
        A.scales = scales + rows.begin;
      } else {
        A.data = p.x + rows.begin * p.K;
      }
      multiply_packed<W>({.A = A, .B = B, .panel = panel, .to = {block, width, L}, .kc = kc_of<W>(p.K)});
      for (int64_t r = rows.begin; r < rows.end; ++r) {
        copy(p.y + r * p.N + panels.first(panel), block + (r - rows.begin) * width, panels.size(panel));
      }
    });
    return team.waited();
  });
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
