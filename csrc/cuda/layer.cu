// The kernels of every cell for one dtype, FASTRNN_DTYPE. This file is compiled once for each dtype.

#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cells/registry.h"
#include "cuda/device.h"
#include "cuda/layer.h"
#include "cuda/layer_passes.h"
#include "cuda/queue.h"

namespace fastrnn::cuda {
namespace {

template <class Cell, class T>
Plan find_plan(const Problem& problem, std::optional<Kind> forced, int refused) {
  return find_plan(problem, current_device(), forced, refused, [&](const Plan& plan) {
    return persistent::fits<Cell, T>(plan, problem.math, problem.backward);
  });
}

// Keeps the plans that were found: to ask the driver what fits takes longer than a short call.
template <class Cell, class T>
class Plans {
 public:
  static Plan find(const Problem& problem) {
    const auto forced = forced_kind();
    const std::lock_guard<std::mutex> lock(mutex());
    const auto [place, is_new] = plans().try_emplace(key_of(problem, forced));
    if (is_new) {
      try {
        place->second = find_plan<Cell, T>(problem, forced, 0);
      } catch (...) {
        plans().erase(place);
        throw;
      }
    }
    return place->second;
  }

  // Replaces the plan of this problem by one of another kind, from now on.
  static void refuse(const Problem& problem, const Plan& plan, cudaError_t error) {
    const auto forced = forced_kind();
    if (forced) check(error, (std::string("the launch of a ") + name_of(*forced) + " plan").c_str());
    const std::lock_guard<std::mutex> lock(mutex());
    plans().insert_or_assign(key_of(problem, forced),
                             find_plan<Cell, T>(problem, forced, plan.refused | bit_of(plan.kind)));
  }

 private:
  using Key = std::tuple<int, std::optional<Kind>, Math, bool, bool, bool, int64_t, int64_t, int64_t, int>;
  static Key key_of(const Problem& p, std::optional<Kind> forced) {
    return {current_device_index(),  forced, p.math, p.backward, p.projected, p.noisy,
            steps_of_plan(p.T, p.B), p.B,    p.H,    p.D};
  }
  static std::map<Key, Plan>& plans() {
    static std::map<Key, Plan> all;
    return all;
  }
  static std::mutex& mutex() {
    static std::mutex one;
    return one;
  }
};

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

// Tries plans until the device accepts one. It always accepts a stepwise plan.
template <class Cell, class T, class Pass, class Params>
void run_by_plan(const Params& p, bool backward, const Context& context) {
  const Problem problem{.cell = &Cell::info,
                        .math = context.math,
                        .backward = backward,
                        .projected = p.weights[0].W_hr != nullptr,
                        .noisy = p.noise.is_there(),
                        .T = p.rows.T,
                        .B = p.rows.B,
                        .H = p.H,
                        .D = p.D};
  for (;;) {
    const Plan plan = Plans<Cell, T>::find(problem);
    try {
      return run<Pass>(p, plan, context);
    } catch (const LaunchRefused& refused) {
      Plans<Cell, T>::refuse(problem, plan, refused.error);
    }
  }
}

template <class Cell, class T>
void forward(const ForwardParams<T>& p, const Context& context) {
  run_by_plan<Cell, T, LayerForward<Queue, Cell, T>>(p, false, context);
}
template <class Cell, class T>
void backward(const BackwardParams<T>& p, const Context& context) {
  run_by_plan<Cell, T, LayerBackward<Queue, Cell, T>>(p, true, context);
}

template <class Cell, class T>
constexpr LayerKernels<T> layer_kernels() {
  return {forward<Cell, T>, backward<Cell, T>, Plans<Cell, T>::find};
}

#define FASTRNN_ROW(Cell) layer_kernels<cells::Cell, FASTRNN_DTYPE>(),
const LayerKernels<FASTRNN_DTYPE> kernels[] = {FASTRNN_FOR_EACH_CELL(FASTRNN_ROW)};
#undef FASTRNN_ROW

}  // namespace

template <>
const LayerKernels<FASTRNN_DTYPE>& kernels_of<FASTRNN_DTYPE>(int cell) {
  return kernels[cell];
}

}  // namespace fastrnn::cuda
