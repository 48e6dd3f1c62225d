// Runs the body of the persistent kernels (csrc/cuda/persistent/recurrence_loop.h) on the host, and compares the
// results with a plain float64 recurrence.
//
//   persistent_runner_MATH [FAULT]
//
// It prints one line for each problem, and returns 1 if one differs. With FAULT, it runs a few problems with that fault
// of host_warp.h planted, and must not return 0; `none` plants none.
//
// FASTRNN_MATH: ieee, tf32, fp16 or bf16. A program for each, because they take long to compile.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/persistent/recurrence_loop.h"
#include "cuda/persistent/roles.h"
#include "cuda/plan.h"
#include "host_warp.h"

namespace fastrnn {
namespace {

using namespace cuda;
using host::Fault;

struct Case {
  int64_t T, B, H;
  int D;
  enum Layout { time_major, batch_major, packed } layout;
  bool nan = false;  // in h0
  int sms = 20;      // of the device for which the plan is made
};

// A number after the rounding that a math applies to the operands of a product.
template <Math math>
double operand(double value) {
  using T = Stored<math>;
  const float stored = to_real(from_real<T>(static_cast<float>(value)));
  return math == Math::tf32 ? to_tf32(stored) : stored;
}
template <Math math>
double stored(double value) {
  return to_real(from_real<Stored<math>>(static_cast<float>(value)));
}
template <Math math>
double unit_roundoff() {
  switch (math) {
    case Math::bf16:
      return std::ldexp(1, -9);
    case Math::fp16:
    case Math::tf32:
      return std::ldexp(1, -12);
    default:
      return std::ldexp(1, -24);
  }
}

std::mt19937_64 generator(1);
double uniform(double bound) { return std::uniform_real_distribution<double>(-bound, bound)(generator); }

using Numbers = std::vector<double>;
Numbers random_numbers(int64_t count, double bound, double (*round)(double)) {
  Numbers numbers(count);
  for (double& number : numbers) number = round(uniform(bound));
  return numbers;
}

// A problem in float64, its results by the equations, and the results of the kernels.
template <class Cell, Math math>
class Layer {
  static constexpr int G = Cell::gates, S = Cell::saved;
  using T = Stored<math>;

 public:
  explicit Layer(const Case& c) : T_(c.T), B(c.B), H(c.H), D(c.D), GH(G * c.H) {
    rows = {T_,      B,      c.layout == Case::batch_major ? 1 : B, c.layout == Case::batch_major ? T_ : 1,
            nullptr, nullptr};
    if (c.layout == Case::packed) {
      for (int64_t b = 0; b < B; ++b) lengths.push_back(b == 0 ? T_ : std::max<int64_t>(1, T_ - b * T_ / B));
      offsets.push_back(0);
      for (int64_t t = 0; t < T_; ++t) {
        int64_t n = 0;
        while (n < B && lengths[n] > t) ++n;
        offsets.push_back(offsets.back() + n);
      }
      rows.lengths = lengths.data();
      rows.offsets = offsets.data();
    }
    R = total_rows(rows);
    const double bound = 1 / std::sqrt(static_cast<double>(H));
    const auto whole = [](double value) { return static_cast<double>(static_cast<float>(value)); };
    for (int d = 0; d < D; ++d) {
      W[d] = random_numbers(GH * H, bound, stored<math>);
      b_ih[d] = random_numbers(GH, bound, stored<math>);
      b_hh[d] = random_numbers(GH, bound, stored<math>);
    }
    gx = random_numbers(R * D * GH, 1, whole);
    h0 = random_numbers(D * B * H, 1, stored<math>);
    c0 = random_numbers(D * B * H, 1, stored<math>);
    dy = random_numbers(R * D * H, 1, stored<math>);
    dhn = random_numbers(D * B * H, 1, stored<math>);
    dcn = random_numbers(D * B * H, 1, stored<math>);
    if (c.nan) h0[H / 2] = NAN;
    y.resize(R * D * H), hn.resize(D * B * H), cn.resize(D * B * H);
    s.resize(D * R * S * H), c_all.resize(D * R * H);
    dgx.resize(R * D * GH), dgh.resize(R * D * GH), dh0.resize(D * B * H), dc0.resize(D * B * H);
    for (int d = 0; d < D; ++d) {
      for (int64_t b = 0; b < B; ++b) forward(d, b);
      for (int64_t b = 0; b < B; ++b) backward(d, b);
    }
  }

  // The largest error of the results of the kernels, in units of the tolerance.
  double run(Kind kind, int sms, Fault fault) {
    double worst = 0;
    const auto compare = [&](const char* name, const auto& got, const Numbers& expected, double rounded) {
      double scale = 1;
      for (const double value : expected) {
        if (std::isfinite(value)) scale = std::max(scale, std::abs(value));
      }
      for (size_t i = 0; i < expected.size(); ++i) {
        const double value = to_real(got[i]);
        double error = std::abs(value - expected[i]) / (scale * rounded);
        if (std::isnan(value) != std::isnan(expected[i])) error = INFINITY;
        if (std::isnan(value) && std::isnan(expected[i])) error = 0;
        if (error > 1 && worst <= 1) {
          std::printf("  %s[%zu]: expected %.9g, got %.9g\n", name, i, expected[i], value);
        }
        worst = std::max(worst, error);
      }
    };
    // The tolerance, in units of the scale: the rounding of the K numbers of a product, and of the numbers that each
    // step stores. A number that is rounded to the other side changes by 2 u, and what follows by about as much.
    const double rounded = 8 * unit_roundoff<math>() + std::sqrt(1.0 * GH) * std::ldexp(1, -23);

    const auto T_of = [](const Numbers& numbers) {
      std::vector<T> result;
      for (const double number : numbers) result.push_back(from_real<T>(static_cast<float>(number)));
      if constexpr (std::is_same_v<T, float>) {  // a NaN whose upper bits are those of infinity
        for (T& number : result) number = number != number ? bit_cast<float>(0x7f800001) : number;
      }
      return result;
    };
    const auto float_of = [](const Numbers& numbers) {
      return std::vector<float>(numbers.begin(), numbers.end());
    };
    const T unwritten = from_real<T>(-99.f);
    std::vector<T> W_[2], b_ih_[2], b_hh_[2], h0_ = T_of(h0), c0_ = T_of(c0);
    const std::vector<float> gx_ = float_of(gx);
    std::vector<T> y_(y.size(), unwritten), hn_(hn.size(), unwritten), cn_(cn.size(), unwritten);
    std::vector<float> s_(s.size(), -99.f), c_(c_all.size(), -99.f);
    Recurrence<T> p{};
    p.rows = rows, p.H = H, p.D = D, p.gx = gx_.data();
    for (int d = 0; d < D; ++d) {
      W_[d] = T_of(W[d]), b_ih_[d] = T_of(b_ih[d]), b_hh_[d] = T_of(b_hh[d]);
      p.weights[d] = {nullptr, W_[d].data(), b_ih_[d].data(), b_hh_[d].data(), nullptr, {}};
    }
    p.h0 = h0_.data(), p.c0[0] = c0_.data();
    p.y = y_.data(), p.hn = hn_.data(), p.cn[0] = cn_.data(), p.s = s_.data(), p.c = c_.data();
    launch<ForwardRole<Cell, math>>(kind, sms, fault, p);
    compare("y", y_, y, rounded);
    compare("hn", hn_, hn, rounded);
    if (Cell::cell_states > 0) compare("cn", cn_, cn, rounded);
    compare("s", s_, s, rounded);
    if (Cell::cell_states > 0) compare("c", c_, c_all, rounded);

    // The backward starts from the forward of the equations, so that a fault in one cannot hide in the other.
    y_ = T_of(y), s_ = float_of(s), c_ = float_of(c_all);
    BackwardRecurrence<T> q{};
    q.rows = rows, q.H = H, q.D = D;
    std::copy_n(p.weights, 2, q.weights);
    q.h0 = p.h0, q.c0[0] = p.c0[0];
    q.y = y_.data(), q.s = s_.data(), q.c = c_.data();
    const std::vector<T> dy_ = T_of(dy), dhn_ = T_of(dhn), dcn_ = T_of(dcn);
    std::vector<T> dgx_(dgx.size(), unwritten), dgh_(dgh.size(), unwritten);
    std::vector<T> dh0_(dh0.size(), unwritten), dc0_(dc0.size(), unwritten);
    q.dy = dy_.data(), q.dhn = dhn_.data(), q.dcn[0] = dcn_.data();
    q.dgx = dgx_.data(), q.dgh = cells::has_split_gate<Cell> ? dgh_.data() : dgx_.data();
    q.dh0 = dh0_.data(), q.dc0[0] = dc0_.data();
    launch<BackwardRole<Cell, math>>(kind, sms, fault, q);
    compare("dgx", dgx_, dgx, rounded);
    if (cells::has_split_gate<Cell>) compare("dgh", dgh_, dgh, rounded);
    compare("dh0", dh0_, dh0, rounded);
    if (Cell::cell_states > 0) compare("dc0", dc0_, dc0, rounded);
    return worst;
  }

 private:
  template <class Role>
  void launch(Kind kind, int sms, Fault fault, const typename Role::Params& p) const {
    Device device{sms, 90, 227 << 10, {}};
    for (int n = 1; n <= kMostCluster; ++n) device.clusters[n - 1] = sms / n;
    const Plan plan = make_plan({.cell = &Cell::info,
                                 .math = math,
                                 .backward = Role::backward,
                                 .projected = false,
                                 .noisy = false,
                                 .T = T_,
                                 .B = B,
                                 .H = H,
                                 .D = D},
                                device, kind);
    Tiling t = make_tiling(plan, math, warp_rows(G, Role::backward), exchange_shape(G, Role::backward, H),
                           Role::states);
    if (fault == Fault::single_buffer) t.buffer_stride = t.partial_bytes = 0;
    if (fault == Fault::short_tail) t.k_tiles = exchange_shape(G, Role::backward, H).K() / tile_shape(math).k;
    for (int d0 = 0; d0 < D; d0 += plan.directions) {
      std::vector<uint32_t> counters(plan.directions * plan.block_groups * plan.tiles);
      host::launch(plan, plan.directions, t.bytes, fault, [&](host::HostWarp& warp) {
        uint32_t* mine = counters.data() +
                         (warp.direction() * plan.block_groups + warp.block() / plan.blocks) * plan.tiles;
        if (kind == Kind::grid) {
          RecurrenceLoop<host::HostWarp, Role, Kind::grid>::run(warp, p, t, d0 + warp.direction(), mine);
        } else {
          RecurrenceLoop<host::HostWarp, Role, Kind::cluster>::run(warp, p, t, d0 + warp.direction(), mine);
        }
      });
    }
  }

  int64_t length(int64_t b) const { return length_of(rows, b); }
  int64_t row(int64_t t, int64_t b) const { return row_of(rows, t, b); }

  void forward(int d, int64_t b) {
    Numbers h(h0.begin() + (d * B + b) * H, h0.begin() + (d * B + b + 1) * H), read = h;
    Numbers c(c0.begin() + (d * B + b) * H, c0.begin() + (d * B + b + 1) * H);
    for (int64_t i = 0; i < length(b); ++i) {
      const int64_t at = row(d == 0 ? i : length(b) - 1 - i, b);
      Numbers next(H);
      for (int64_t u = 0; u < H; ++u) {
        double x[G], g[G], saved[S > 0 ? S : 1];
        for (int gate = 0; gate < G; ++gate) {
          x[gate] = gx[(at * D + d) * GH + gate * H + u] + b_ih[d][gate * H + u];
          g[gate] = b_hh[d][gate * H + u];
          for (int64_t k = 0; k < H; ++k) {
            g[gate] += operand<math>(W[d][(gate * H + u) * H + k]) * operand<math>(read[k]);
          }
        }
        cells::forward<Cell, Activations>(x, g, kNoVectors, h[u], saved, &c[u], next[u]);
        y[(at * D + d) * H + u] = stored<math>(next[u]);
        for (int k = 0; k < S; ++k) s[((d * R + at) * S + k) * H + u] = saved[k];
        c_all[(d * R + at) * H + u] = c[u];
      }
      h = next;
      for (int64_t u = 0; u < H; ++u) read[u] = stored<math>(h[u]);
    }
    for (int64_t u = 0; u < H; ++u) {
      hn[(d * B + b) * H + u] = read[u];
      cn[(d * B + b) * H + u] = stored<math>(c[u]);
    }
  }

  void backward(int d, int64_t b) {
    Numbers dh(H), dc(dcn.begin() + (d * B + b) * H, dcn.begin() + (d * B + b + 1) * H);
    for (int64_t u = 0; u < H; ++u) dh[u] = dhn[(d * B + b) * H + u];
    for (int64_t i = length(b) - 1; i >= 0; --i) {
      const int64_t at = row(d == 0 ? i : length(b) - 1 - i, b);
      const int64_t previous = i == 0 ? -1 : row(d == 0 ? i - 1 : length(b) - i, b);
      Numbers gates(GH), direct(H);
      for (int64_t u = 0; u < H; ++u) {
        const int64_t state = (d * B + b) * H + u;
        double saved[S > 0 ? S : 1], x[G], g[G], *const none = nullptr;
        for (int k = 0; k < S; ++k) saved[k] = static_cast<float>(s[((d * R + at) * S + k) * H + u]);
        const double h_prev = previous < 0 ? h0[state] : y[(previous * D + d) * H + u];
        const double c_prev =
            previous < 0 ? c0[state] : static_cast<float>(c_all[(d * R + previous) * H + u]);
        const double c = static_cast<float>(c_all[(d * R + at) * H + u]);
        Cell::template backward<Activations>(saved, kNoVectors, h_prev, y[(at * D + d) * H + u], &c_prev, &c,
                                             dh[u] + dy[(at * D + d) * H + u], &dc[u], x, g, none, direct[u]);
        for (int gate = 0; gate < G; ++gate) {
          const int64_t to = (at * D + d) * GH + gate * H + u;
          dgx[to] = stored<math>(x[gate]);
          dgh[to] = cells::has_split_gate<Cell> ? stored<math>(g[gate]) : dgx[to];
          gates[gate * H + u] = dgh[to];
        }
      }
      dh = direct;
      for (int64_t u = 0; u < H; ++u) {
        for (int64_t k = 0; k < GH; ++k) dh[u] += operand<math>(W[d][k * H + u]) * operand<math>(gates[k]);
      }
    }
    for (int64_t u = 0; u < H; ++u) {
      dh0[(d * B + b) * H + u] = dh[u];
      dc0[(d * B + b) * H + u] = dc[u];
    }
  }

  static constexpr const double* kNoVectors = nullptr;
  const int64_t T_, B, H;
  const int D;
  const int64_t GH;
  int64_t R;
  DeviceRows rows;
  std::vector<int64_t> lengths, offsets;
  Numbers W[2], b_ih[2], b_hh[2], gx, h0, c0, dy, dhn, dcn;
  Numbers y, hn, cn, s, c_all, dgx, dgh, dh0, dc0;
};

// All combinations of the sizes; the other properties change in turn.
std::vector<Case> all_cases() {
  std::vector<Case> cases;
  int number = 0;
  for (const int64_t H : {1, 17, 40, 72, 150, 257}) {
    for (const int64_t B : {1, 3, 9, 33}) {
      for (const int64_t T : {1, 2, 30}) {
        ++number;
        const auto layout = static_cast<Case::Layout>(number % 3);
        cases.push_back({T, B, H, 1 + number % 2, layout, number % 5 == 0, number % 4 == 0 ? 6 : 20});
      }
    }
  }
  return cases;
}
// ThreadSanitizer is slow. These few problems have all that a fault needs to show.
const std::vector<Case> kFewCases = {
    {30, 9, 40, 1, Case::packed},     {4, 33, 150, 1, Case::time_major, false, 6},
    {6, 9, 72, 2, Case::batch_major}, {2, 3, 1, 1, Case::time_major},
    {3, 3, 257, 1, Case::packed},
};

template <class Cell, Math math>
bool run_cases(const std::vector<Case>& cases, Fault fault) {
  bool right = true;
  for (const Case& c : cases) {
    Layer<Cell, math> problem(c);
    for (const Kind kind : {Kind::grid, Kind::cluster}) {
      std::printf("%-8s %-7s T=%-2d B=%-2d H=%-3d D=%d layout %d%s: ", Cell::info.name, name_of(kind),
                  static_cast<int>(c.T), static_cast<int>(c.B), static_cast<int>(c.H), c.D, c.layout,
                  c.nan ? ", NaN" : "");
      try {
        const double worst = problem.run(kind, c.sms, fault);
        std::printf("%.3f of the tolerance\n", worst);
        right = right && worst <= 1;
      } catch (const std::runtime_error& error) {  // of make_plan
        std::printf("%s\n", error.what());
      }
      std::fflush(stdout);
    }
  }
  return right;
}

int run(const std::vector<Case>& cases, Fault fault) {
  bool right = true;
  const auto run_cell = [&]<class Cell>() {
    if constexpr (has_persistent_kernels(Cell::info)) {
      right = run_cases<Cell, Math::FASTRNN_MATH>(cases, fault) && right;
    }
  };
#define FASTRNN_CELL(Cell) run_cell.operator()<cells::Cell>();
  FASTRNN_FOR_EACH_CELL(FASTRNN_CELL)
#undef FASTRNN_CELL
  return right ? 0 : 1;
}

}  // namespace
}  // namespace fastrnn

int main(int argc, char** argv) {
  using namespace fastrnn;
  const std::vector<std::pair<std::string, Fault>> faults = {
      {"none", Fault::none},
      {"relaxed_signal", Fault::relaxed_signal},
      {"missing_wait", Fault::missing_wait},
      {"lost_signal", Fault::lost_signal},
      {"single_buffer", Fault::single_buffer},
      {"short_tail", Fault::short_tail},
  };
  const std::string name = argc > 1 ? argv[1] : "";
  for (const auto& [known, fault] : faults) {
    if (name == known) return run(kFewCases, fault);
  }
  if (name.empty()) return run(all_cases(), Fault::none);
  std::fprintf(stderr, "FAULT: unknown '%s'\n", name.c_str());
  return 2;
}
