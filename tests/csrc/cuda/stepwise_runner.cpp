// Runs stepwise plans, and the products before and after the recurrence, on the host (csrc/cuda/layer_passes.h):
//
//   stepwise_runner_DTYPE CELL ORDER INPUT OUTPUT
//
// ORDER is `ascending` or `descending`: the order of the indices in a kernel. The results must not depend on it. INPUT
// is a sequence of arrays: an int64 number of bytes (-1 for a null pointer), and then the bytes.
// tests/csrc/cuda/test_stepwise.py writes it. OUTPUT gets the results in the same form.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <string>
#include <vector>

#include "cells/registry.h"
#include "cuda/layer_passes.h"

namespace fastrnn::cuda {
namespace {

class HostQueue {
 public:
  explicit HostQueue(bool descending) : descending_(descending) {}

  template <class Body>
  void launch(int64_t depth, int64_t rows, int64_t columns, const Body& body) {
    if (depth < 1 || rows < 1 || columns < 1) throw std::logic_error("an empty launch");
    const int64_t count = depth * rows * columns;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t index = descending_ ? count - 1 - k : k;
      body(index / columns / rows, index / columns % rows, index % columns);
    }
  }

  // As BLAS defines it: c [m, n] column-major = op(a) op(b) + beta c.
  template <class T, class TC>
  void multiply(const Gemm<T, TC>& gemm) {
    const BlasGemm<T, TC> g(gemm);
    if (g.lda < (g.transpose_a ? g.k : g.m) || g.ldb < (g.transpose_b ? g.n : g.k) || g.ldc < g.m) {
      throw std::logic_error("a leading dimension that BLAS refuses");
    }
    for (int64_t i = 0; i < gemm.batch; ++i) {
      const T *a = g.a + i * g.stride_a, *b = g.b + i * g.stride_b;
      TC* c = g.c + i * g.stride_c;
      for (int64_t row = 0; row < g.m; ++row) {
        for (int64_t column = 0; column < g.n; ++column) {
          Real<T> sum = gemm.add ? to_real(c[row + column * g.ldc]) : 0;
          for (int64_t k = 0; k < g.k; ++k) {
            sum += to_real(g.transpose_a ? a[k + row * g.lda] : a[row + k * g.lda]) *
                   to_real(g.transpose_b ? b[column + k * g.ldb] : b[k + column * g.ldb]);
          }
          c[row + column * g.ldc] = from_real<TC>(sum);
        }
      }
    }
  }

  template <class T>
  void copy(T* to, const T* from, int64_t count) {
    std::memcpy(to, from, count * sizeof(T));
  }

  static int64_t recurrence_bytes(const Plan&) { return 0; }
  template <class Cell, class Recurrence>
  void run_recurrence(const Plan&, const Recurrence&, void*) {
    throw std::logic_error("only a stepwise plan runs here");
  }

 private:
  const bool descending_;
};

// The arrays of a file.
class Input {
 public:
  explicit Input(const char* path) : file_(std::fopen(path, "rb")) {
    if (!file_) throw std::runtime_error(std::string("cannot read ") + path);
  }
  ~Input() { std::fclose(file_); }

  template <class T>
  T* next() {
    int64_t bytes;
    read(&bytes, sizeof(bytes));
    if (bytes < 0) return nullptr;
    std::vector<char>& buffer = buffers_.emplace_back(bytes);
    read(buffer.data(), bytes);
    return reinterpret_cast<T*>(buffer.data());
  }

 private:
  void read(void* to, int64_t bytes) {
    if (std::fread(to, 1, bytes, file_) != static_cast<size_t>(bytes)) {
      throw std::runtime_error("the input ends early");
    }
  }
  std::FILE* file_;
  std::deque<std::vector<char>> buffers_;
};

// The results, in the order of the calls. Until it is written, each is bytes of 0xff: a NaN in every dtype.
class Output {
 public:
  template <class T>
  T* take(bool wanted, int64_t count) {
    if (!wanted) return nullptr;
    buffers_.emplace_back(count * sizeof(T), '\xff');
    return reinterpret_cast<T*>(buffers_.back().data());
  }

  void write(const char* path) const {
    std::FILE* file = std::fopen(path, "wb");
    if (!file) throw std::runtime_error(std::string("cannot write ") + path);
    for (const std::vector<char>& buffer : buffers_) {
      const int64_t bytes = buffer.size();
      std::fwrite(&bytes, sizeof(bytes), 1, file);
      std::fwrite(buffer.data(), 1, bytes, file);
    }
    std::fclose(file);
  }

 private:
  std::deque<std::vector<char>> buffers_;
};

template <class Pass, class Params>
void run(const Params& p, HostQueue& queue) {
  const Plan plan{};  // stepwise
  Arena size(nullptr);
  Pass(p, plan, size);
  std::vector<char> block(size.bytes() + Arena::kAlignment, '\xff');
  const size_t past = reinterpret_cast<uintptr_t>(block.data()) % Arena::kAlignment;
  Arena arena(block.data() + (past ? Arena::kAlignment - past : 0));
  Pass(p, plan, arena).run(queue);
}

// Calls f(parameter, i) for each parameter of a direction. i: the number of its first vector of units among all.
template <class Cell, class F>
void for_each_parameter(const F& f) {
  int i = 0;
  for (const cells::Parameter& parameter : Cell::info.parameters) {
    f(parameter, i);
    i += Cell::info.vectors_of(parameter);
  }
}

template <class Cell, class T>
int64_t count_of(const cells::Parameter& parameter, const LayerParams<T>& p) {
  switch (parameter.kind) {
    case cells::ParameterKind::input_matrix:
      return Cell::gates * p.H * p.I;
    case cells::ParameterKind::state_matrix:
      return Cell::gates * p.H * p.P;
    case cells::ParameterKind::projection:
      return p.P * p.H;
    case cells::ParameterKind::unit_vectors:
      return Cell::info.vectors_of(parameter) * p.H;
    default:
      return Cell::gates * p.H;
  }
}

template <class Cell, class T>
void solve(Input& input, Output& output, HostQueue queue) {
  constexpr int C = Cell::cell_states;
  LayerParams<T> given{};
  const int64_t* sizes = input.next<int64_t>();
  given.rows = {sizes[0], sizes[1], sizes[2], sizes[3], nullptr, nullptr};
  given.I = sizes[4];
  given.H = sizes[5];
  given.P = sizes[6];
  given.D = static_cast<int>(sizes[7]);
  const bool hn_wanted = sizes[8], inputs_wanted = sizes[9], weights_wanted = sizes[10];
  Rows& rows = given.rows;
  rows.batch_sizes = input.next<int64_t>();
  std::vector<int64_t> offsets{0};
  if (rows.packed()) {
    for (int64_t t = 0; t < rows.T; ++t) offsets.push_back(offsets.back() + rows.batch_sizes[t]);
    rows.offsets = offsets.data();
  }
  for (int d = 0; d < given.D; ++d) {
    for_each_parameter<Cell>([&](const cells::Parameter& parameter, int i) {
      given.weights[d].set(parameter.kind, input.next<T>(), i, Cell::info.vectors_of(parameter), given.H);
    });
  }
  given.x = input.next<T>();
  given.h0 = input.next<T>();
  for (int k = 0; k < C; ++k) given.c0[k] = input.next<T>();
  given.noise.mask = input.next<T>();
  const double* zoneout = input.next<double>();
  if (zoneout) std::copy_n(zoneout, 1 + C, given.noise.zoneout);
  given.noise.seed = input.next<int64_t>();
  BackwardParams<T> p{};
  static_cast<LayerParams<T>&>(p) = given;
  p.dy = input.next<T>();
  p.dhn = input.next<T>();
  for (int k = 0; k < C; ++k) p.dcn[k] = input.next<T>();

  const int64_t R = rows.total(), DB = p.D * rows.B, N = zoneout ? (Cell::saved == 0) + C : 0;
  // Once as if no backward follows, once as if one does.
  ForwardParams<T> forward{};
  static_cast<LayerParams<T>&>(forward) = given;
  forward.y = output.take<T>(true, R * p.D * p.P);
  forward.hn = output.take<T>(hn_wanted, DB * p.P);
  for (int k = 0; k < C; ++k) forward.cn[k] = output.take<T>(true, DB * p.H);
  run<LayerForward<HostQueue, Cell, T>>(forward, queue);
  p.y = forward.y;
  p.s = forward.s = output.take<Real<T>>(Cell::saved > 0, p.D * R * Cell::saved * p.H);
  p.c = forward.c = output.take<Real<T>>(C > 0, p.D * R * C * p.H);
  p.computed = forward.computed = output.take<Real<T>>(N > 0, p.D * R * N * p.H);
  forward.y = output.take<T>(true, R * p.D * p.P);
  run<LayerForward<HostQueue, Cell, T>>(forward, queue);

  p.dx = output.take<T>(inputs_wanted, R * p.I);
  p.dh0 = output.take<T>(inputs_wanted, DB * p.P);
  for (int k = 0; k < C; ++k) p.dc0[k] = output.take<T>(inputs_wanted, DB * p.H);
  for (int d = 0; d < p.D; ++d) {
    for_each_parameter<Cell>([&](const cells::Parameter& parameter, int i) {
      const bool wanted = weights_wanted && p.weights[d].of(parameter.kind, i);
      T* gradient = output.take<T>(wanted, count_of<Cell>(parameter, p));
      p.dweights[d].set(parameter.kind, gradient, i, Cell::info.vectors_of(parameter), p.H);
    });
  }
  // As csrc/torch/layer.cpp does: a single step has no y, unless the cell saves nothing else.
  if (rows.T == 1 && Cell::saved > 0) p.y = nullptr;
  run<LayerBackward<HostQueue, Cell, T>>(p, queue);
}

template <class T>
void solve(const std::string& cell, Input& input, Output& output, const HostQueue& queue) {
#define FASTRNN_CELL(Cell) \
  if (cell == cells::Cell::info.name) return solve<cells::Cell, T>(input, output, queue);
  FASTRNN_FOR_EACH_CELL(FASTRNN_CELL)
#undef FASTRNN_CELL
  throw std::invalid_argument("unknown cell " + cell);
}

}  // namespace
}  // namespace fastrnn::cuda

int main(int argc, char** argv) {
  using namespace fastrnn;
  using namespace fastrnn::cuda;
  try {
    if (argc != 5) throw std::invalid_argument("expected CELL ORDER INPUT OUTPUT");
    Input input(argv[3]);
    Output output;
    solve<FASTRNN_DTYPE>(argv[1], input, output, HostQueue(std::string(argv[2]) == "descending"));
    output.write(argv[4]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "stepwise_runner: %s\n", error.what());
    return 1;
  }
}
