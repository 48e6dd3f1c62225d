#include "cuda/plan.h"

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <stdexcept>

#include "cuda/tiling.h"

namespace fastrnn::cuda {

namespace {

// The selector: the first row that can compute a problem does. The numbers are predictions, made before any
// measurement.
struct Rule {
  int tier;
  int capability;       // at least
  int most_blocks;      // of a group; 0: as many as the device has SMs
  int most_tiles;       // of a group: with more sequences in turn, GEMMs over all of them are expected to win
  int64_t least_steps;  // with fewer, loading the weights into registers is not expected to pay
  const char* reason;
};
constexpr Rule kRules[] = {
    {2, 90, kMostCluster, 4, 3, "the weights fit the registers of one cluster"},
    {1, 80, 0, 4, 3, "the weights fit the registers of the device"},
};
constexpr int64_t kMostCounted = 1 << 30;  // steps and sequences: the kernels count in 32 bits
constexpr Plan kStepByStep{0, 0, 0, 0, 0, 0, 0, 1, 0, "a GEMM and a pointwise kernel for each step", 0};

// The plan of a rule's tier, or nothing if the problem or the device does not allow it.
std::optional<Plan> plan_of(const Rule& rule, const Problem& problem, const Device& device, bool choose) {
  if (device.capability < rule.capability || problem.math == Math::fp64 || problem.projected ||
      !has_persistent_kernels(*problem.cell)) {
    return std::nullopt;
  }
  if (choose && problem.T < rule.least_steps) return std::nullopt;
  if (std::max(problem.T, problem.B) > kMostCounted) return std::nullopt;
  const cells::CellInfo& cell = *problem.cell;
  const WarpRows rows = warp_rows(cell.gates.size(), problem.backward);
  const ExchangeShape exchange = exchange_shape(cell.gates.size(), problem.backward, problem.H);
  const int64_t most_blocks = rule.most_blocks > 0 ? rule.most_blocks : device.sms;
  const int64_t k_warps = ceil_div(exchange.K(), rows.k_slice(problem.math));
  if (k_warps > kMostWarps) return std::nullopt;
  const int64_t row_groups = ceil_div(problem.H, rows.units());
  const int64_t row_warps = std::min<int64_t>(kMostWarps / k_warps, row_groups);
  const int64_t blocks = ceil_div(row_groups, row_warps);
  if (blocks > std::min<int64_t>(most_blocks, device.sms)) return std::nullopt;

  const int64_t batch = tile_batch(rule.tier, problem.math),
                all_tiles = ceil_div(std::max<int64_t>(problem.B, 1), batch);
  Plan plan{};
  plan.tier = rule.tier;
  plan.row_warps = static_cast<int>(row_warps);
  plan.k_warps = static_cast<int>(k_warps);
  plan.blocks = static_cast<int>(blocks);
  plan.tile_batch = static_cast<int>(batch);
  // Groups that run at once, one block an SM.
  const int64_t resident = rule.tier == 2 ? device.clusters[blocks - 1] : device.sms / blocks;
  if (resident == 0) return std::nullopt;
  plan.directions = problem.D <= resident ? problem.D : 1;
  const int64_t each = resident / plan.directions;
  plan.tiles = static_cast<int>(ceil_div(all_tiles, std::min(each, all_tiles)));
  plan.groups = static_cast<int>(ceil_div(all_tiles, plan.tiles));
  plan.reason = rule.reason;
  const int states = kept_states(cell.states.size() - 1, cell.reads_h, problem.backward);
  plan.shared_bytes = make_tiling(plan, problem.math, rows, exchange, states).bytes;
  if (plan.shared_bytes > device.shared_bytes || (choose && plan.tiles > rule.most_tiles)) {
    return std::nullopt;
  }
  return plan;
}

}  // namespace

Plan make_plan(const Problem& problem, const Device& device, int tier, int refused) {
  if (tier != 0) {
    for (const Rule& rule : kRules) {
      if (tier > 0 ? tier != rule.tier : (refused >> rule.tier & 1) != 0) continue;
      if (auto plan = plan_of(rule, problem, device, tier < 0)) {
        plan->refused = refused;
        return *plan;
      }
    }
  }
  if (tier > 0) {
    throw std::runtime_error("tier " + std::to_string(tier) + " cannot compute " + problem.cell->name +
                             " with H = " + std::to_string(problem.H) + ", B = " + std::to_string(problem.B) +
                             (problem.backward ? ", backward," : ",") + " on this device");
  }
  Plan plan = kStepByStep;
  plan.refused = refused;
  return plan;
}

Plan find_plan(const Problem& problem, const Device& device, int tier, int refused,
               const std::function<bool(const Plan&)>& fits) {
  for (;;) {
    const Plan plan = make_plan(problem, device, tier, refused);
    if (plan.tier == 0 || fits(plan)) return plan;
    if (tier > 0) {
      throw std::runtime_error("the blocks of tier " + std::to_string(tier) +
                               " do not fit this device at once: tier " + std::to_string(tier) +
                               " cannot compute " + problem.cell->name);
    }
    refused |= 1 << plan.tier;
  }
}

int64_t steps_of_plan(int64_t T) {
  const int64_t many = std::ranges::max(kRules, {}, &Rule::least_steps).least_steps;
  return T > kMostCounted ? kMostCounted + 1 : std::min(T, many);
}

int forced_tier() {
  const char* value = std::getenv("FASTRNN_CUDA_TIER");
  if (value == nullptr || *value == '\0') return -1;
  const std::string text = value;
  if (text == "0" || text == "1" || text == "2") return text[0] - '0';
  throw std::runtime_error("FASTRNN_CUDA_TIER: expected 0, 1 or 2, got '" + text + "'");
}

uint64_t longest_wait() {
  constexpr double kNanoseconds = 1e9, kMost = 1e9;  // seconds: for ever, as far as anyone can tell
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
