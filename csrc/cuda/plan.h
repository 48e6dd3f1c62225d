#pragma once

#include <array>
#include <cstdint>
#include <functional>

#include "cells/cell_info.h"

// Which kernels compute a recurrence, and how they cut it up: a table of rules, and arithmetic on sizes. Plain
// C++ that every build has, so that a plan for any device can be printed on any machine.

namespace fastrnn::cuda {

// How products are computed: on numbers of which type, and for float in full (ieee) or rounded to tf32.
enum class Math { fp64, ieee, tf32, fp16, bf16 };

// Blocks of a cluster at most.
constexpr int kMostCluster = 16;

struct Device {
  int sms;
  int capability;        // 90 for 9.0
  int64_t shared_bytes;  // most a block can have
  // [n - 1]: clusters of n blocks that run at once, one block an SM. Fewer than sms / n, as a cluster lies
  // within one of the groups of SMs that the device is made of.
  std::array<int, kMostCluster> clusters;
};

// Whether the persistent kernels (tiers 1 and 2) have this cell: a lane of theirs keeps no numbers of vectors.
constexpr bool has_persistent_kernels(const cells::CellInfo& cell) {
  return cell.count(cells::Kind::unit_vector) == 0;
}

struct Problem {
  const cells::CellInfo* cell;
  Math math;
  bool backward;
  bool projected;
  int64_t T, B, H;
  int D;
};

// Tier 0: step after step, a GEMM and a pointwise kernel. Any device, any size.
// Tier 1: a grid whose blocks keep the weights in registers for the whole sequence and pass h through
//         global memory. sm_80.
// Tier 2: the same in clusters of blocks that pass h through their shared memory. sm_90.
//
// A group is the blocks (tier 1) or the cluster (tier 2) that hold all weights of a direction once. It works
// on `tiles` tiles of `tile_batch` sequences in turn. A block has row_warps x k_warps warps: row_warps parts
// of its rows of the weights, k_warps slices of the sum.
struct Plan {
  int tier;
  int row_warps, k_warps;
  int blocks;  // of a group
  int groups;  // of a direction
  int tiles;   // of a group
  int tile_batch;
  int directions;        // that run at once, in one launch
  int64_t shared_bytes;  // of a block
  const char* reason;    // why this tier
  int refused;           // the tiers that `make_plan` was to leave out, bit 1 << tier for each

  int threads() const { return 32 * row_warps * k_warps; }
};

// tier -1: the best by the table, without the `refused` tiers, which the device cannot run at present; 0, 1, 2:
// that one. Throws std::runtime_error where a tier that was asked for cannot compute the problem.
Plan make_plan(const Problem& problem, const Device& device, int tier = -1, int refused = 0);

// The same, of the first tier whose plan `fits`: the device is asked whether it can hold its blocks at once. Throws
// std::runtime_error also where the one that was asked for does not.
Plan find_plan(const Problem& problem, const Device& device, int tier, int refused,
               const std::function<bool(const Plan&)>& fits);

// The least number of steps whose plans are those of T steps.
int64_t steps_of_plan(int64_t T);

// The tier that FASTRNN_CUDA_TIER names, or -1. Throws std::runtime_error for anything but 0, 1 or 2.
int forced_tier();

// Nanoseconds that a block waits for another before it takes it for lost; 0: for ever. FASTRNN_CUDA_WAIT_SECONDS,
// or 20 seconds. Throws std::runtime_error for anything but a number that is not negative.
uint64_t longest_wait();

}  // namespace fastrnn::cuda
