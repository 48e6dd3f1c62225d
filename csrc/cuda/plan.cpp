#include "cuda/plan.h"

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <stdexcept>

#include "cuda/persistent/tiling.h"

namespace fastrnn::cuda {

namespace {

// The first row that can compute a problem is chosen. H200: a tile takes a grid 5 to 12 us a step in 16 bits and 10 to 18
// in 32 bits, and a cluster 2 to 5; stepwise kernels take 13 to 30 for all tiles. The rest are predictions.
struct Rule {
  Kind kind;
  int capability;   // at least
  int most_blocks;  // of a block group; 0: as many as the device has SMs
  // Of a block group, for numbers of 16 and of 32 bits. With more tiles in turn, GEMMs over all sequences win.
  int most_tiles_16, most_tiles_32;
  int64_t least_steps;  // with fewer, loading the weights into registers is not expected to pay
  const char* reason;
};
constexpr Rule kRules[] = {
    {Kind::cluster, 90, kMostCluster, 4, 4, 3, "the weights fit the registers of one cluster"},
    {Kind::grid, 80, 0, 2, 1, 3, "the weights fit the registers of the device"},
};
constexpr int64_t kMostRows = 1 << 30;  // the kernels count in 32 bits
constexpr Plan kStepByStep{
    Kind::stepwise, 0, 0, 0, 0, 0, 0, 1, 0, "a GEMM and a pointwise kernel for each step", 0};

// Whether the rows, and so the steps and the sequences, are few enough to be counted.
bool can_count(int64_t T, int64_t B) {
  return T <= kMostRows && B <= kMostRows && T * std::max<int64_t>(B, 1) <= kMostRows;
}

// The plan of a rule's kind, or nothing if the problem or the device does not allow it. `choose`: nothing also if
// the rule does not expect this plan to win.
std::optional<Plan> plan_of(const Rule& rule, const Problem& problem, const Device& device, bool choose) {
  if (device.capability < rule.capability || problem.math == Math::fp64 || problem.projected ||
      problem.noisy || !has_persistent_kernels(*problem.cell)) {
    return std::nullopt;
  }
  if (choose && problem.T < rule.least_steps) return std::nullopt;
  if (!can_count(problem.T, problem.B)) return std::nullopt;
  const cells::CellInfo& cell = *problem.cell;
  const WarpRows rows = warp_rows(cell.gates.size(), problem.backward);
  const ExchangeShape exchange = exchange_shape(cell.gates.size(), problem.backward, problem.H);
  const int64_t most_blocks = rule.most_blocks > 0 ? rule.most_blocks : device.sms;
  const int64_t k_warps = ceil_div(exchange.K(), rows.k_slice(problem.math));
  if (k_warps > kMostWarps) return std::nullopt;
  const int64_t all_row_warps = ceil_div(problem.H, rows.units());
  const int64_t row_warps = std::min<int64_t>(kMostWarps / k_warps, all_row_warps);
  const int64_t blocks = ceil_div(all_row_warps, row_warps);
  if (blocks > std::min<int64_t>(most_blocks, device.sms)) return std::nullopt;

  const int64_t batch = tile_batch(rule.kind, problem.math),
                all_tiles = ceil_div(std::max<int64_t>(problem.B, 1), batch);
  Plan plan{};
  plan.kind = rule.kind;
  plan.row_warps = static_cast<int>(row_warps);
  plan.k_warps = static_cast<int>(k_warps);
  plan.blocks = static_cast<int>(blocks);
  plan.tile_batch = static_cast<int>(batch);
  // Block groups that run at once, one block an SM.
  const int64_t resident = rule.kind == Kind::cluster ? device.clusters[blocks - 1] : device.sms / blocks;
  if (resident == 0) return std::nullopt;
  plan.directions = problem.D <= resident ? problem.D : 1;
  const int64_t each = resident / plan.directions;
  plan.tiles = static_cast<int>(ceil_div(all_tiles, std::min(each, all_tiles)));
  plan.block_groups = static_cast<int>(ceil_div(all_tiles, plan.tiles));
  plan.reason = rule.reason;
  const int states = kept_states(cell.states.size() - 1, cell.reads_h, problem.backward);
  plan.shared_bytes = make_tiling(plan, problem.math, rows, exchange, states).bytes;
  const bool narrow = problem.math == Math::bf16 || problem.math == Math::fp16;
  const int most_tiles = narrow ? rule.most_tiles_16 : rule.most_tiles_32;
  if (plan.shared_bytes > device.shared_bytes || (choose && plan.tiles > most_tiles)) {
    return std::nullopt;
  }
  return plan;
}

}  // namespace

const char* name_of(Kind kind) {
  constexpr const char* kNames[] = {"stepwise", "grid", "cluster"};
  return kNames[static_cast<int>(kind)];
}

std::optional<Kind> find_kind(const std::string& name) {
  for (const Kind kind : kKinds) {
    if (name == name_of(kind)) return kind;
  }
  return std::nullopt;
}

Plan make_plan(const Problem& problem, const Device& device, std::optional<Kind> forced, int refused) {
  if (forced != Kind::stepwise) {
    for (const Rule& rule : kRules) {
      if (forced ? *forced != rule.kind : (refused & bit_of(rule.kind)) != 0) continue;
      if (auto plan = plan_of(rule, problem, device, !forced)) {
        plan->refused = refused;
        return *plan;
      }
    }
    if (forced) {
      throw std::runtime_error(std::string("a ") + name_of(*forced) + " plan cannot compute " +
                               problem.cell->name + " with H = " + std::to_string(problem.H) +
                               ", B = " + std::to_string(problem.B) +
                               (problem.backward ? ", backward," : ",") + " on this device");
    }
  }
  Plan plan = kStepByStep;
  plan.refused = refused;
  return plan;
}

Plan find_plan(const Problem& problem, const Device& device, std::optional<Kind> forced, int refused,
               const std::function<bool(const Plan&)>& fits) {
  for (;;) {
    const Plan plan = make_plan(problem, device, forced, refused);
    if (plan.kind == Kind::stepwise || fits(plan)) return plan;
    if (forced) {
      throw std::runtime_error(std::string("a ") + name_of(*forced) + " plan cannot compute " +
                               problem.cell->name + ": its blocks do not fit this device at once");
    }
    refused |= bit_of(plan.kind);
  }
}

int64_t steps_of_plan(int64_t T, int64_t B) {
  const int64_t many = std::ranges::max(kRules, {}, &Rule::least_steps).least_steps;
  return can_count(T, B) ? std::min(T, many) : kMostRows + 1;
}

std::optional<Kind> forced_kind() {
  const char* value = std::getenv("FASTRNN_CUDA_PLAN");
  if (value == nullptr || *value == '\0') return std::nullopt;
  if (const auto kind = find_kind(value)) return kind;
  throw std::runtime_error(std::string("FASTRNN_CUDA_PLAN: expected ") + kKindNames + ", got '" + value +
                           "'");
}

uint64_t longest_wait() {
  constexpr double kNanoseconds = 1e9, kMost = 1e9;  // kMost: seconds, as good as for ever
  const char* value = std::getenv("FASTRNN_CUDA_WAIT_SECONDS");
  if (value == nullptr || *value == '\0') return static_cast<uint64_t>(20 * kNanoseconds);
  char* end = nullptr;
  const double seconds = std::strtod(value, &end);
  if (*end != '\0' || !(seconds >= 0)) {
    throw std::runtime_error(
        "FASTRNN_CUDA_WAIT_SECONDS: expected a number of seconds, 0 for no limit, got '" +
        std::string(value) + "'");
  }
  return static_cast<uint64_t>(std::min(seconds, kMost) * kNanoseconds);
}

}  // namespace fastrnn::cuda
