#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "cells/cell_info.h"

// Which kernels compute a recurrence, and how they divide it: a table of rules, and arithmetic on sizes. This is plain
// C++ and part of every build, so that any machine can print the plan for any device.

namespace fastrnn::cuda {

// How products are computed: the type of the numbers, and for float whether in full (ieee) or rounded to tf32.
enum class Math { fp64, ieee, tf32, fp16, bf16 };

// The most blocks of a cluster.
constexpr int kMostCluster = 16;

struct Device {
  int sms;
  int capability;        // 90 for 9.0
  int64_t shared_bytes;  // the most that a block can have
  // [n - 1]: the number of clusters of n blocks that run at once, one block an SM. It can be less than sms / n,
  // because a cluster lies within one GPC, a graphics processing cluster.
  std::array<int, kMostCluster> clusters;
};

// Whether there are grid and cluster plans for a cell. Their lanes keep no unit vectors.
constexpr bool has_persistent_kernels(const cells::CellInfo& cell) {
  return cell.persistent && cell.unit_vectors() == 0;
}

struct Problem {
  const cells::CellInfo* cell;
  Math math;
  bool backward;
  bool projected;
  bool noisy;  // with zoneout or dropout of h
  int64_t T, B, H;
  int D;
};

// How a recurrence is computed.
//   stepwise: step after step, a GEMM and a pointwise kernel. Any device, any size, every cell.
//   grid:     a grid whose blocks keep the weights in registers for the whole sequence and pass h through
//             global memory. sm_80.
//   cluster:  the same in clusters of blocks that pass h through their shared memory. sm_90.
enum class Kind { stepwise, grid, cluster };
constexpr Kind kKinds[] = {Kind::stepwise, Kind::grid, Kind::cluster};
constexpr const char* kKindNames = "stepwise, grid or cluster";  // for messages

const char* name_of(Kind kind);
std::optional<Kind> find_kind(const std::string& name);
constexpr int bit_of(Kind kind) { return 1 << static_cast<int>(kind); }

// A block group is the set of blocks that holds all weights of a direction once: some blocks of a grid, or a cluster.
// It works on `tiles` tiles of `tile_batch` sequences in turn. A block has row_warps x k_warps warps: `row_warps`
// divide its rows of the weights, `k_warps` divide the sum.
struct Plan {
  Kind kind;
  int row_warps, k_warps;
  int blocks;        // of a block group
  int block_groups;  // of a direction
  int tiles;         // of a block group
  int tile_batch;
  int directions;        // that run at once, in one launch
  int64_t shared_bytes;  // of a block
  const char* reason;    // why this kind
  int refused;           // the kinds that `make_plan` left out: the sum of their `bit_of`

  int threads() const { return 32 * row_warps * k_warps; }
};

// Returns a plan of the `forced` kind. Without one, the table chooses, but not from the `refused` kinds, which the
// device cannot run at present. Throws std::runtime_error if the forced kind cannot compute the problem.
Plan make_plan(const Problem& problem, const Device& device, std::optional<Kind> forced = std::nullopt,
               int refused = 0);

// The same, for the first kind whose plan `fits`: whether the device can hold all blocks of the plan at once. Also
// throws std::runtime_error if the plan of the forced kind does not fit.
Plan find_plan(const Problem& problem, const Device& device, std::optional<Kind> forced, int refused,
               const std::function<bool(const Plan&)>& fits);

// A number of steps that has the same plans as T steps of B sequences: one of few.
int64_t steps_of_plan(int64_t T, int64_t B);

// The kind that FASTRNN_CUDA_PLAN names, if it is set. Throws std::runtime_error if that is no kind.
std::optional<Kind> forced_kind();

// The nanoseconds after which a block that waits for another one gives up; 0: never. FASTRNN_CUDA_WAIT_SECONDS sets
// them, the default is 20 seconds. Throws std::runtime_error if it is not a number or negative.
uint64_t longest_wait();

}  // namespace fastrnn::cuda
