// Tests on a GPU that every primitive of DeviceWarp (csrc/cuda/persistent/device_warp.cuh) does the same as that of
// HostWarp. persistent_runner.cpp tests the logic of the kernels on the host with HostWarp.
//
//   conformance               prints one line a test, then the time of a round of each exchange; returns 1 if a test
//                             fails
//   conformance quick         few rounds and no times, for the sanitizers
//   conformance lost_signal   waits for a signal that never comes; returns 0 if that ends in an error, after 20 seconds

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/activations.h"
#include "cuda/persistent/device_warp.cuh"
#include "host_warp.h"

namespace fastrnn::cuda {
namespace {

using host::HostWarp;

struct Skipped {
  std::string why;
};

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clear it for the next check
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

int attribute(cudaDeviceAttr name) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, 0), "cudaDeviceGetAttribute");
  return value;
}

// With this much shared memory, an SM has no room for a second block.
int most_shared() { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

// Memory of the host with a copy on the device.
template <class V>
class Buffer {
 public:
  explicit Buffer(std::vector<V> values) : host(std::move(values)) {
    check(cudaMalloc(&device, host.size() * sizeof(V)), "cudaMalloc");
    check(cudaMemcpy(device, host.data(), host.size() * sizeof(V), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  Buffer(size_t count, V fill) : Buffer(std::vector<V>(count, fill)) {}
  ~Buffer() { cudaFree(device); }
  Buffer(const Buffer&) = delete;
  const std::vector<V>& fetch() {
    check(cudaDeviceSynchronize(), "a kernel");
    check(cudaMemcpy(host.data(), device, host.size() * sizeof(V), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return host;
  }
  std::vector<V> host;
  V* device = nullptr;
};

struct Shape {
  int blocks, threads;
  int cluster = 0;  // blocks
  bool cooperative = false;
  int shared = 0;  // bytes
};

// The configuration of a launch, and the attribute that it points to.
struct Launch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attribute{};

  template <class Kernel>
  Launch(Kernel* kernel, const Shape& shape) {
    config.gridDim = dim3(shape.blocks);
    config.blockDim = dim3(shape.threads);
    config.dynamicSmemBytes = shape.shared;
    config.attrs = &attribute;
    if (shape.cooperative) {
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
      config.numAttrs = 1;
    } else if (shape.cluster > 0) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster size");
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
      config.numAttrs = 1;
    }
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared),
          "shared memory");
  }
  Launch(const Launch&) = delete;
};

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Shape& shape, Arguments... arguments) {
  const Launch launch(kernel, shape);
  check(cudaLaunchKernelEx(&launch.config, kernel, arguments...), "launch");
}

struct Run {
  bool right;
  float milliseconds;
};

template <class... Parameters, class... Arguments>
float milliseconds(void (*kernel)(Parameters...), const Shape& shape, Arguments... arguments) {
  const Launch launch(kernel, shape);
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  check(cudaEventRecord(begin), "cudaEventRecord");
  check(cudaLaunchKernelEx(&launch.config, kernel, arguments...), "launch");
  check(cudaEventRecord(end), "cudaEventRecord");
  check(cudaEventSynchronize(end), "a kernel");
  float result = 0;
  check(cudaEventElapsedTime(&result, begin, end), "cudaEventElapsedTime");
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return result;
}

__global__ void shuffle_kernel(uint32_t* out) {
  DeviceWarp warp(0);
  for (int mask = 1; mask < 32; mask *= 2) {
    DeviceWarp::var<uint32_t> value;
    warp.lanes([&](int lane) { value[lane] = 100 + lane; });
    const auto other = warp.shuffle_xor(value, mask);
    warp.lanes([&](int lane) { out[mask * 32 + lane] = other[lane]; });
  }
}
bool shuffle_xor() {
  Buffer<uint32_t> out(1024, 0);
  launch(shuffle_kernel, {.blocks = 1, .threads = 32}, out.device);
  out.fetch();
  for (int mask = 1; mask < 32; mask *= 2) {
    for (int lane = 0; lane < 32; ++lane) {
      if (out.host[mask * 32 + lane] != 100u + (lane ^ mask)) return false;
    }
  }
  return true;
}

constexpr int kMatrixRowBytes = 144, kMatrixOffset = 32;  // as the padding of the exchange gives them
__global__ void load_matrices_kernel(uint32_t* out) {
  DeviceWarp warp(0);
  uint32_t* const rows = warp.shared<uint32_t>(0);
  warp.lanes([&](int lane) {
    for (int i = lane; i < 8 * kMatrixRowBytes / 4; i += 32) rows[i] = i;
  });
  warp.block_sync();
  DeviceWarp::var<uint32_t> words[4];
  warp.load_matrices(words, warp.matrices(rows, kMatrixRowBytes), kMatrixOffset);
  warp.lanes([&](int lane) {
    for (int i = 0; i < 4; ++i) out[i * 32 + lane] = words[i][lane];
  });
}
bool load_matrices() {
  std::vector<uint32_t> rows(8 * kMatrixRowBytes / 4);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<uint32_t>(i);
  HostWarp::var<uint32_t> words[4];
  HostWarp::load_matrices(words, HostWarp::matrices(rows.data(), kMatrixRowBytes), kMatrixOffset);
  Buffer<uint32_t> out(4 * 32, 0);
  launch(load_matrices_kernel, {.blocks = 1, .threads = 32, .shared = 8 * kMatrixRowBytes}, out.device);
  out.fetch();
  for (int i = 0; i < 4; ++i) {
    for (int lane = 0; lane < 32; ++lane) {
      if (out.host[i * 32 + lane] != words[i][lane]) return false;
    }
  }
  return true;
}

// Products in which every position of the fragments has its own number, and whose sums are exact. A has the odd numbers
// +-1 .. +-255. In product p < places, B has numbers only in place p along k: 2^column. So a result is its accumulator
// plus an odd number times a power of two. The odd number shows the position in A, the power shows the column of B, and
// p shows the place. This term is less than 2^15, and accumulators are 2^16 apart, so the result shows its accumulator
// too. Any swap of positions, registers, halves or lanes therefore changes a result. The last product sums along all of
// k, with odd numbers in B.
template <Math math>
struct Fragments {
  static constexpr int per_word = math == Math::tf32 ? 1 : 2;
  static constexpr int places = 2 * 4 * per_word;  // along k: register, lane % 4, half
  static constexpr int products = places + 1;

  static float odd(int i) { return static_cast<float>((i / 2 * 2 + 1) * (i % 2 ? -1 : 1)); }
  static uint32_t bits(float number) {
    if constexpr (math == Math::tf32) {
      return bit_cast<uint32_t>(number);
    } else {
      return from_real<std::conditional_t<math == Math::bf16, bf16, fp16>>(number).bits;
    }
  }
  template <class F>  // number(half)
  static uint32_t word(const F& number) {
    uint32_t result = 0;
    for (int half = 0; half < per_word; ++half) result |= bits(number(half)) << 16 * half;
    return result;
  }

  static uint32_t a(int i, int lane) {
    return word([&](int half) { return odd((i * 32 + lane) * per_word + half); });
  }
  static uint32_t b(int product, int i, int lane) {
    return word([&](int half) {
      if (product == places) return odd((i * 32 + lane) * per_word + half);
      return (i * 4 + lane % 4) * per_word + half == product ? std::ldexp(1.0f, lane / 4) : 0.0f;
    });
  }
  static float c(int i, int lane) { return std::ldexp(static_cast<float>(i * 32 + lane - 64), 16); }
};
template <Math math>
__global__ void mma_kernel(const uint32_t* a_words, const uint32_t* b_words, float* sums) {
#if __CUDA_ARCH__ >= 800
  DeviceWarp warp(0);
  DeviceWarp::var<float> c[4];
  DeviceWarp::var<uint32_t> a[4], b[2];
  warp.lanes([&](int lane) {
    for (int i = 0; i < 4; ++i) a[i][lane] = a_words[i * 32 + lane], c[i][lane] = sums[i * 32 + lane];
    for (int i = 0; i < 2; ++i) b[i][lane] = b_words[i * 32 + lane];
  });
  warp.mma<math>(c, a, b);
  warp.lanes([&](int lane) {
    for (int i = 0; i < 4; ++i) sums[i * 32 + lane] = c[i][lane];
  });
#endif
}
template <Math math>
bool mma() {
  using F = Fragments<math>;
  for (int product = 0; product < F::products; ++product) {
    HostWarp::var<float> c[4];
    HostWarp::var<uint32_t> a[4], b[2];
    std::vector<uint32_t> a_words, b_words;
    std::vector<float> sums;
    for (int i = 0; i < 4; ++i) {
      for (int lane = 0; lane < 32; ++lane) {
        a_words.push_back(a[i][lane] = F::a(i, lane));
        sums.push_back(c[i][lane] = F::c(i, lane));
        if (i < 2) b_words.push_back(b[i][lane] = F::b(product, i, lane));
      }
    }
    Buffer<uint32_t> device_a(a_words), device_b(b_words);
    Buffer<float> device_sums(sums);
    launch(mma_kernel<math>, {.blocks = 1, .threads = 32}, device_a.device, device_b.device,
           device_sums.device);
    device_sums.fetch();
    HostWarp::mma<math>(c, a, b);
    for (int i = 0; i < 4 * 32; ++i) {
      if (device_sums.host[i] != c[i / 32][i % 32]) return false;
    }
  }
  return true;
}

// In each round, every block writes, signals, waits for all blocks and reads what all have written. The same cache
// lines held the numbers of an earlier round. Unless `checked`, it does not read: this is what is timed, with the
// writes, for which the signal waits, and with the two block_sync() of the grid's exchange.
bool quick = false;
int rounds = 2000;
uint64_t wait_limit = 20'000'000'000;  // nanoseconds
template <bool checked>
__global__ void counter_kernel(int rounds, uint64_t wait_limit, int shared_bytes, uint32_t* data,
                               uint32_t* counter, uint32_t* wrong) {
  DeviceWarp warp(wait_limit);
  const int blocks = gridDim.x;
  uint32_t* const last_word = warp.shared<uint32_t>(shared_bytes - 4);
  if (threadIdx.x == 0) *last_word = blockIdx.x;
  for (int round = 0; round < rounds; ++round) {
    uint32_t* const mine = data + round % 2 * blocks * 64;
    if (threadIdx.x < 64) mine[blockIdx.x * 64 + threadIdx.x] = round * 1000 + blockIdx.x;
    warp.block_sync();
    if (warp.warp() == 0) {
      warp.signal(counter);
      warp.wait_counter(counter, blocks * (round + 1), round > 0);
    }
    warp.block_sync();
    if constexpr (checked) {
      for (int i = threadIdx.x; i < blocks * 64; i += blockDim.x) {
        if (warp.load_fresh<uint32_t>(mine + i) != static_cast<uint32_t>(round * 1000 + i / 64))
          atomicAdd(wrong, 1);
      }
      for (int i = threadIdx.x; i < blocks * 16; i += blockDim.x) {
        const Quad quad = warp.load_fresh<Quad>(mine + 4 * i);
        if (quad.of[3] != static_cast<uint32_t>(round * 1000 + i / 16)) atomicAdd(wrong, 1);
      }
      if (warp.load_fresh<unsigned short>(mine) != static_cast<unsigned short>(round * 1000))
        atomicAdd(wrong, 1);
    }
  }
  if (threadIdx.x == 0 && *last_word != blockIdx.x) atomicAdd(wrong, 1);
}
template <bool checked>
Run run_counter(int blocks, int shared) {
  Buffer<uint32_t> data(2 * blocks * 64, 0), counter(1, 0), wrong(1, 0);
  const Shape shape{.blocks = blocks, .threads = 128, .cooperative = true, .shared = shared};
  const float time = milliseconds(counter_kernel<checked>, shape, rounds, wait_limit, shared, data.device,
                                  counter.device, wrong.device);
  return {wrong.fetch()[0] == 0, time};
}
int blocks_of_large_grid() { return std::min(128, attribute(cudaDevAttrMultiProcessorCount)); }

// The same through the shared memory of a cluster. The barriers are at 0 and 8, the two buffers at the far end of the
// memory. Every pushed word is a different number, so the test sees each word that comes from another round, cluster or
// block, or goes to another. Unless `checked`, it does not read them: pushes and waits are what is timed.
constexpr int kPushThreads = 64;
template <bool checked>
__global__ void push_kernel(int rounds, uint64_t wait_limit, int shared_bytes, int blocks, uint32_t* wrong) {
#if __CUDA_ARCH__ >= 900
  DeviceWarp warp(wait_limit);
  const int words = blocks * kPushThreads;
  const int clusters = gridDim.x / blocks, cluster = blockIdx.x / blocks, me = blockIdx.x % blocks;
  const auto place = [&](int round, int i) { return shared_bytes - 4 * (words * (1 + round % 2) - i); };
  const auto number = [&](int round, int to, int i) {
    return static_cast<uint32_t>(((round * clusters + cluster) * blocks + to) * words + i);
  };
  if (warp.warp() == 0) {
    for (int buffer = 0; buffer < 2; ++buffer) {
      warp.barrier_init(8 * buffer);
      warp.barrier_expect(8 * buffer, 4 * words);
    }
  }
  warp.cluster_sync();
  for (int round = 0; round < rounds; ++round) {
    const int at = 8 * (round % 2);
    for (int rank = 0; rank < blocks; ++rank) {
      const int i = me * kPushThreads + threadIdx.x;
      warp.push(threadIdx.x % 32, rank, place(round, i), number(round, rank, i), at);
    }
    warp.barrier_wait(at, round / 2 % 2);
    if (warp.warp() == 0 && round + 2 < rounds) warp.barrier_expect(at, 4 * words);
    if constexpr (checked) {
      for (int i = threadIdx.x; i < words; i += blockDim.x) {
        if (*warp.shared<uint32_t>(place(round, i)) != number(round, me, i)) atomicAdd(wrong, 1);
      }
      warp.block_sync();
    }
  }
  warp.cluster_sync();
#endif
}
Shape push_shape(int blocks, int clusters) {
  return {.blocks = blocks * clusters, .threads = kPushThreads, .cluster = blocks, .shared = most_shared()};
}
template <bool checked>
int clusters_at_once(int blocks) {
  const Launch launch(push_kernel<checked>, push_shape(blocks, 1));
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, push_kernel<checked>, &launch.config) != cudaSuccess) {
    cudaGetLastError();  // the device may not support clusters of this size
    return 0;
  }
  return clusters;
}
template <bool checked>
Run run_push(int blocks, int clusters) {
  Buffer<uint32_t> wrong(1, 0);
  const float time = milliseconds(push_kernel<checked>, push_shape(blocks, clusters), rounds, wait_limit,
                                  most_shared(), blocks, wrong.device);
  return {wrong.fetch()[0] == 0, time};
}
bool push_and_barrier_wait(int blocks, bool all_clusters) {
  const int clusters = clusters_at_once<true>(blocks);
  if (clusters == 0) throw Skipped{"the device holds no such cluster"};
  if (quick && blocks == 1) throw Skipped{"memcheck takes every push within a single block for an error"};
  if (all_clusters && clusters == 1) throw Skipped{"the device holds one such cluster"};
  return run_push<true>(blocks, all_clusters ? clusters : 1).right;
}

__global__ void numbers_kernel(float* from_bf16, float* from_fp16, uint16_t* bf16_of, uint16_t* fp16_of,
                               float* tf32_of) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  from_bf16[i] = to_real(bf16{static_cast<uint16_t>(i)});
  from_fp16[i] = to_real(fp16{static_cast<uint16_t>(i)});
  const float value = bit_cast<float>(i * 65521u);
  bf16_of[i] = from_real<bf16>(value).bits;
  fp16_of[i] = from_real<fp16>(value).bits;
  tf32_of[i] = to_tf32(value);
}
bool numbers() {
  constexpr int count = 1 << 16;
  Buffer<float> from_bf16(count, 0), from_fp16(from_bf16.host), tf32_of(from_bf16.host);
  Buffer<uint16_t> bf16_of(count, 0), fp16_of(bf16_of.host);
  numbers_kernel<<<count / 256, 256>>>(from_bf16.device, from_fp16.device, bf16_of.device, fp16_of.device,
                                       tf32_of.device);
  from_bf16.fetch(), from_fp16.fetch(), tf32_of.fetch(), bf16_of.fetch(), fp16_of.fetch();
  const auto same = [](float a, float b) {
    return (a != a && b != b) || bit_cast<uint32_t>(a) == bit_cast<uint32_t>(b);
  };
  for (uint32_t i = 0; i < count; ++i) {
    const float value = bit_cast<float>(i * 65521u);
    const bf16 b{static_cast<uint16_t>(i)};
    const fp16 h{static_cast<uint16_t>(i)};
    if (!same(from_bf16.host[i], to_real(b)) || !same(from_fp16.host[i], to_real(h))) return false;
    if (!same(to_real(bf16{bf16_of.host[i]}), to_real(from_real<bf16>(value)))) return false;
    if (!same(to_real(fp16{fp16_of.host[i]}), to_real(from_real<fp16>(value)))) return false;
    if (!same(tf32_of.host[i], to_tf32(value))) return false;
  }
  return true;
}

__global__ void activations_kernel(const float* in, float* sigmoid, float* tanh) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  sigmoid[i] = Activations::sigmoid(in[i]);
  tanh[i] = Activations::tanh(in[i]);
}
bool activations() {
  constexpr int count = 1 << 16;
  Buffer<float> in(count, 0), sigmoid(in.host), tanh(in.host);
  for (int i = 0; i < count; ++i)
    in.host[i] = static_cast<float>(std::ldexp(i % 2 ? 1.0 : -1.0, i % 40 - 30) * (1 + i * 1e-5));
  in.host[0] = NAN, in.host[1] = INFINITY, in.host[2] = -INFINITY;
  Buffer<float> copy(in.host);
  activations_kernel<<<count / 256, 256>>>(copy.device, sigmoid.device, tanh.device);
  sigmoid.fetch(), tanh.fetch();
  // CUDA documents 2 ulp for ex2.approx and 1 for rcp.approx. The argument of ex2 is rounded, so its relative error
  // grows with it; where that is much, the sigmoid is small.
  const auto close = [](float got, double expected, double ulps) {
    if (std::isnan(expected)) return std::isnan(got);
    return std::abs(got - expected) <= ulps * std::ldexp(std::abs(expected), -23) + std::ldexp(1, -126);
  };
  for (int i = 0; i < count; ++i) {
    const double a = in.host[i];
    if (!close(sigmoid.host[i], 1 / (1 + std::exp(-a)), 5 + std::min(std::abs(a), 128.0)) ||
        !close(tanh.host[i], std::tanh(a), 5)) {
      return false;
    }
  }
  return true;
}

__global__ void lost_signal_kernel(uint64_t wait_limit, uint32_t* counter) {
  DeviceWarp(wait_limit).wait_counter(counter, 1, true);
}
bool lost_signal_is_an_error() {
  Buffer<uint32_t> counter(1, 0);
  launch(lost_signal_kernel, {.blocks = 1, .threads = 32}, wait_limit, counter.device);
  return cudaDeviceSynchronize() != cudaSuccess;
}

struct Test {
  std::string name;
  int capability;  // at least
  std::function<bool()> run;
};
constexpr int kClusterSizes[] = {1, 3, 4, 5, 8, 12, 16};

std::vector<Test> tests() {
  std::vector<Test> all = {
      {"shuffle_xor", 75, shuffle_xor},
      {"mma bf16", 80, mma<Math::bf16>},
      {"mma fp16", 80, mma<Math::fp16>},
      {"mma tf32", 80, mma<Math::tf32>},
      {"numbers", 75, numbers},
      {"activations", 75, activations},
      {"load_matrices", 75, load_matrices},
  };
  const std::string counter = "signal, wait_counter, load_fresh, block_sync: ";
  all.push_back({counter + "32 blocks", 80, [] { return run_counter<true>(32, 16 << 10).right; }});
  all.push_back({counter + "one block an SM", 80,
                 [] { return run_counter<true>(blocks_of_large_grid(), most_shared()).right; }});
  for (const int blocks : kClusterSizes) {
    const std::string push = "push, barrier_wait, cluster_sync: ", size = " of " + std::to_string(blocks);
    all.push_back({push + "one cluster" + size, 90, [=] { return push_and_barrier_wait(blocks, false); }});
    all.push_back({push + "all clusters" + size, 90, [=] { return push_and_barrier_wait(blocks, true); }});
  }
  return all;
}

std::string outcome(const Test& test, int capability) {
  if (capability < test.capability) return "skipped: older device";
  try {
    return test.run() ? "passed" : "FAILED";
  } catch (const Skipped& skipped) {
    return "skipped: " + skipped.why;
  } catch (const std::runtime_error& error) {
    return std::string("FAILED: ") + error.what();
  }
}

bool run_tests(int capability) {
  bool right = true;
  for (const Test& test : tests()) {
    const std::string result = outcome(test, capability);
    std::printf("%-60s %s\n", test.name.c_str(), result.c_str());
    std::fflush(stdout);
    right = right && result.rfind("FAILED", 0) != 0;
  }
  return right;
}

// The shortest of several launches: the first one loads the kernel, and the clocks rise.
void print_time(const std::string& name, const std::function<float()>& milliseconds_of_a_launch) {
  float shortest = INFINITY;
  for (int i = 0; i < 6; ++i) shortest = std::min(shortest, milliseconds_of_a_launch());
  std::printf("timing %s: %.1f ns a round\n", name.c_str(), shortest * 1e6 / rounds);
  std::fflush(stdout);
}

void print_times(int capability) {
  for (const int blocks : {8, 32, 64, 128}) {
    if (capability < 80 || blocks > blocks_of_large_grid()) continue;
    print_time("counter, " + std::to_string(blocks) + " blocks",
               [=] { return run_counter<false>(blocks, most_shared()).milliseconds; });
  }
  for (const int blocks : kClusterSizes) {
    if (capability < 90 || clusters_at_once<false>(blocks) == 0) continue;
    print_time("push, cluster of " + std::to_string(blocks),
               [=] { return run_push<false>(blocks, 1).milliseconds; });
  }
}

}  // namespace
}  // namespace fastrnn::cuda

int main(int argc, char** argv) {
  using namespace fastrnn::cuda;
  const std::string argument = argc > 1 ? argv[1] : "";
  try {
    if (argument == "lost_signal") return lost_signal_is_an_error() ? 0 : 1;
    quick = argument == "quick";
    if (quick) rounds = 20, wait_limit = 0;  // sanitizers are slow
    const int capability =
        10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
    const bool right = run_tests(capability);
    if (!quick) print_times(capability);
    return right ? 0 : 1;
  } catch (const std::runtime_error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
