// The kernels of every cell for one dtype, FASTRNN_DTYPE: this file is compiled once for each.

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cells/registry.h"
#include "cuda/layer.h"
#include "cuda/passes.h"
#include "cuda/queue.h"

namespace fastrnn::cuda {
namespace {

// The plan for the current device, whose blocks it can hold at once.
template <class Cell, class T>
Plan find_plan(const Problem& problem, int forced) {
  const Device device = current_device();
  const Plan plan = make_plan(problem, device, forced);
  if (plan.tier == 0 || persistent::fits<Cell, T>(plan, problem.math, problem.backward)) return plan;
  if (forced > 0) {
    throw std::runtime_error("FASTRNN_CUDA_TIER: the blocks of tier " + std::to_string(forced) +
                             " do not fit the device at once");
  }
  return make_plan(problem, device, 0);
}

// Kept, since asking the driver what fits takes longer than a short call.
template <class Cell, class T>
Plan choose_plan(const ForwardParams<T>& p, Math math, bool backward) {
  static std::mutex mutex;
  static std::map<std::tuple<int, int, Math, bool, bool, int64_t, int64_t, int>, Plan> plans;
  const bool projected = p.weights[0].W_hr != nullptr;
  const int forced = forced_tier();
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const std::lock_guard<std::mutex> lock(mutex);
  const std::tuple key{device, forced, math, backward, projected, p.rows.B, p.H, p.D};
  auto place = plans.find(key);
  if (place == plans.end()) {
    const Problem problem{Cell::name, math, backward, projected, p.rows.B, p.H, p.D};
    place = plans.emplace(key, find_plan<Cell, T>(problem, forced)).first;
  }
  return place->second;
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
  run<LayerForward<Queue, Cell, T>>(p, choose_plan<Cell, T>(p, context.math, false), context);
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
