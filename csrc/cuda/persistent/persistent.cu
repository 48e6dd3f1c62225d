// The persistent kernels. This file is compiled once for each math: FASTRNN_MATH is ieee, tf32, fp16 or bf16.

#include <type_traits>

#include "cells/registry.h"
#include "cuda/device.h"
#include "cuda/persistent/device_warp.cuh"
#include "cuda/persistent/persistent.h"
#include "cuda/persistent/recurrence_loop.h"
#include "cuda/persistent/roles.h"

namespace fastrnn::cuda::persistent {

namespace {

// counters: of a grid, one for each direction, block group and tile.
template <class Role, Kind kind>
__global__ void __launch_bounds__(32 * kMostWarps, 1)
    persistent_recurrence(const __grid_constant__ typename Role::Params p, const __grid_constant__ Tiling t,
                          int first_direction, uint32_t* counters, uint64_t longest_wait) {
  // make_plan chooses a kind only for devices that have its instructions. For older ones the kernel is empty.
#if __CUDA_ARCH__ >= 900
  constexpr Kind last_kind = Kind::cluster;
#elif __CUDA_ARCH__ >= 800
  constexpr Kind last_kind = Kind::grid;
#else
  constexpr Kind last_kind = Kind::stepwise;
#endif
  if constexpr (kind <= last_kind) {
    DeviceWarp warp(longest_wait);
    const int block_group = warp.block() / t.blocks;
    RecurrenceLoop<DeviceWarp, Role, kind>::run(
        warp, p, t, first_direction + warp.direction(),
        counters + (warp.direction() * t.block_groups + block_group) * t.tiles);
  }
}

template <class Role>
Tiling tiling_of(const Plan& plan, int64_t H) {
  return make_tiling(plan, Role::math, warp_rows(Role::G, Role::backward),
                     exchange_shape(Role::G, Role::backward, H), Role::states);
}

// The configuration of a launch, and the attribute that it points to.
struct Launch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attribute{};

  Launch(const Plan& plan, cudaStream_t stream) {
    config.gridDim = dim3(plan.blocks * plan.block_groups, plan.directions);
    config.blockDim = dim3(plan.threads());
    config.dynamicSmemBytes = plan.shared_bytes;
    config.stream = stream;
    if (plan.kind == Kind::grid) {
      attribute.id = cudaLaunchAttributeCooperative;  // all blocks at once, or an error
      attribute.val.cooperative = 1;
    } else {
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {static_cast<unsigned>(plan.blocks), 1, 1};
    }
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  Launch(const Launch&) = delete;
};

// The kernels of both kinds have the same arguments.
template <class Role>
auto kernel_of(const Plan& plan) {
  return plan.kind == Kind::grid ? persistent_recurrence<Role, Kind::grid>
                                 : persistent_recurrence<Role, Kind::cluster>;
}

// Allows a kernel the most shared memory and the largest clusters that any plan asks for. Returns whether the driver
// accepts it. This is done once on each device: it loads the kernel, and threads with different plans would overwrite
// each other's limits.
template <class Role, Kind kind>
bool prepare() {
  static EachDevice<bool> prepared;
  return prepared.get([] {
    const auto kernel = persistent_recurrence<Role, kind>;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(current_device().shared_bytes)) == cudaSuccess &&
           (kind == Kind::grid ||
            cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess);
  });
}

template <class Role>
bool fits_role(const Plan& plan) {
  const auto kernel = kernel_of<Role>(plan);
  bool fits = false;
  if (plan.kind == Kind::grid ? prepare<Role, Kind::grid>() : prepare<Role, Kind::cluster>()) {
    Launch launch(plan, nullptr);
    int resident = 0;
    if (plan.kind == Kind::cluster) {
      fits = cudaOccupancyMaxActiveClusters(&resident, kernel, &launch.config) == cudaSuccess &&
             resident >= plan.block_groups * plan.directions;
    } else {
      fits = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, plan.threads(),
                                                           plan.shared_bytes) == cudaSuccess &&
             resident * current_device().sms >= plan.blocks * plan.block_groups * plan.directions;
    }
  }
  if (!fits) cudaGetLastError();  // clear what the queries left: it is no error of a later call
  return fits;
}

template <class Role>
cudaError_t launch_role(const Plan& plan, const typename Role::Params& p, void* workspace,
                        cudaStream_t stream) {
  const Tiling t = tiling_of<Role>(plan, p.H);
  auto* const counters = static_cast<uint32_t*>(workspace);
  const uint64_t wait = longest_wait();
  cudaError_t error = cudaSuccess;
  for (int d = 0; d < p.D && error == cudaSuccess; d += plan.directions) {
    if (plan.kind == Kind::grid) {
      error = cudaMemsetAsync(counters, 0, workspace_bytes(plan), stream);
      if (error != cudaSuccess) break;
    }
    Launch launch(plan, stream);
    error = cudaLaunchKernelEx(&launch.config, kernel_of<Role>(plan), p, t, d, counters, wait);
  }
  return error;
}

}  // namespace

template <class Cell, Math math>
bool PersistentKernels<Cell, math>::fits(const Plan& plan, bool backward) {
  if constexpr (!has_persistent_kernels(Cell::info))
    return false;
  else
    return backward ? fits_role<BackwardRole<Cell, math>>(plan) : fits_role<ForwardRole<Cell, math>>(plan);
}

template <class Cell, Math math>
cudaError_t PersistentKernels<Cell, math>::forward(const Plan& plan, const Recurrence<Stored<math>>& p,
                                                   void* workspace, cudaStream_t stream) {
  if constexpr (!has_persistent_kernels(Cell::info))
    return cudaErrorInvalidValue;
  else
    return launch_role<ForwardRole<Cell, math>>(plan, p, workspace, stream);
}

template <class Cell, Math math>
cudaError_t PersistentKernels<Cell, math>::backward(const Plan& plan,
                                                    const BackwardRecurrence<Stored<math>>& p,
                                                    void* workspace, cudaStream_t stream) {
  if constexpr (!has_persistent_kernels(Cell::info))
    return cudaErrorInvalidValue;
  else
    return launch_role<BackwardRole<Cell, math>>(plan, p, workspace, stream);
}

#define FASTRNN_CELL(Cell) template struct PersistentKernels<cells::Cell, Math::FASTRNN_MATH>;
FASTRNN_FOR_EACH_CELL(FASTRNN_CELL)
#undef FASTRNN_CELL

}  // namespace fastrnn::cuda::persistent
