#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

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

struct Problem {
  std::string cell;
  Math math;
  bool backward;
  bool projected;
  int64_t T, B, H;
  int D;
};

// How a recurrence is computed.
//   stepwise: step after step, a GEMM and a pointwise kernel. Any device, any size.
//   grid:     a grid whose blocks keep the weights in registers for the whole sequence and pass h through
//             global memory. sm_80.
//   cluster:  the same in clusters of blocks that pass h through their shared memory. sm_90.
enum class Kind { stepwise, grid, cluster };
constexpr Kind kKinds[] = {Kind::stepwise, Kind::grid, Kind::cluster};
constexpr const char* kKindNames = "stepwise, grid or cluster";  // for messages

const char* name_of(Kind kind);
std::optional<Kind> find_kind(const std::string& name);
constexpr int bit_of(Kind kind) { return 1 << static_cast<int>(kind); }

// A block group is the blocks of a grid, or the cluster, that hold all weights of a direction once. It works
// on `tiles` tiles of `tile_batch` sequences in turn. A block has row_warps x k_warps warps: row_warps parts
// of its rows of the weights, k_warps slices of the sum.
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
  int refused;           // the kinds that `make_plan` was to leave out, `bit_of` each

  int threads() const { return 32 * row_warps * k_warps; }
};

// A plan of the `forced` kind. Without one: the best by the table, without the `refused` kinds, which the device
// cannot run at present. Throws std::invalid_argument for an unknown cell and std::runtime_error where the forced
// kind cannot compute the problem.
Plan make_plan(const Problem& problem, const Device& device, std::optional<Kind> forced = std::nullopt,
               int refused = 0);

// The same, of the first kind whose plan `fits`: the device is asked whether it can hold its blocks at once. Throws
// std::runtime_error also where the plan of the forced kind does not fit.
Plan find_plan(const Problem& problem, const Device& device, std::optional<Kind> forced, int refused,
               const std::function<bool(const Plan&)>& fits);

// The least number of steps whose plans are those of T steps.
int64_t steps_of_plan(int64_t T);

// The kind of plan that FASTRNN_CUDA_PLAN names, if it is set. Throws std::runtime_error for any other name.
std::optional<Kind> forced_kind();

// Nanoseconds that a block waits for another before it takes it for lost; 0: for ever. FASTRNN_CUDA_WAIT_SECONDS,
// or 20 seconds. Throws std::runtime_error for anything but a number that is not negative.
uint64_t longest_wait();

}  // namespace fastrnn::cuda
