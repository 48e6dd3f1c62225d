// The kernels of every cell for one dtype, FASTRNN_DTYPE: this file is compiled once for each.

#include <stdexcept>
#include <string>

#include "cells/registry.h"
#include "cuda/layer.h"
#include "cuda/passes.h"
#include "cuda/queue.h"

namespace fastrnn::cuda {
namespace {

template <class Cell, class T>
Plan choose_plan(const ForwardParams<T>& p, Math math, bool backward) {
  const Problem problem{Cell::name, math, backward, p.weights[0].W_hr != nullptr, p.rows.B, p.H, p.D};
  const Device device = current_device();
  const int forced = forced_tier();
  const Plan plan = make_plan(problem, device, forced);
  if (plan.tier == 0 || persistent::fits<Cell, T>(plan, math, backward)) return plan;
  if (forced > 0)
    throw std::runtime_error("FASTRNN_CUDA_TIER: the blocks of tier " + std::to_string(forced) +
                             " do not fit the device at once");
  return make_plan(problem, device, 0);
}

template <class Pass, class Params>
void run(const Params& p, const Plan& plan, const Context& context) {
  Arena size(nullptr);
  Pass(p, plan, size);
  size.take<char>(Queue::kBlasBytes);
  Arena arena(context.allocate(size.bytes()));
  Pass pass(p, plan, arena);
  Queue queue(context, arena.take<char>(Queue::kBlasBytes));
  pass.run(queue);
}

template <class Cell, class T>
void forward(const ForwardParams<T>& p, const Context& context) {
  run<LayerForward<Queue, Cell, T>>(p, choose_plan<Cell>(p, context.math, false), context);
}
template <class Cell, class T>
void backward(const BackwardParams<T>& p, const Context& context) {
  run<LayerBackward<Queue, Cell, T>>(p, choose_plan<Cell, T>(p, context.math, true), context);
}

#define FASTRNN_ROW(Cell) \
  {cells::Cell::name, forward<cells::Cell, FASTRNN_DTYPE>, backward<cells::Cell, FASTRNN_DTYPE>},
const Kernels<FASTRNN_DTYPE> kernels[] = {FASTRNN_FOR_EACH_CELL(FASTRNN_ROW)};
#undef FASTRNN_ROW

}  // namespace

template <>
const Kernels<FASTRNN_DTYPE>& find_kernels<FASTRNN_DTYPE>(const std::string& cell) {
  for (const Kernels<FASTRNN_DTYPE>& row : kernels) {
    if (cell == row.cell) return row;
  }
  throw std::invalid_argument("cell: unknown name '" + cell + "'");
}

}  // namespace fastrnn::cuda
