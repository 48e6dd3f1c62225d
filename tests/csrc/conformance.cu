// On a GPU: does every primitive of DeviceWarp (csrc/cuda/device_warp.cuh) do what HostWarp makes of it? The
// kernels' logic is tested on the host with HostWarp (persistent_runner.cpp); this is what the host cannot see.
//
//   conformance               one line a test; returns 1 if one fails
//   conformance lost_signal   waits for what never comes: returns 0 if that ends in an error, after 20 seconds

#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/activations.h"
#include "cuda/device_warp.cuh"
#include "host_warp.h"

namespace fastrnn::cuda {
namespace {

using host::HostWarp;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}

// Memory that the host and, by copies, the device see.
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

enum class Start { plain, cooperative, cluster };

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int blocks, int threads, Start start,
                   Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  cudaLaunchAttribute attribute{};
  if (start == Start::cooperative) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  } else if (start == Start::cluster) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster size");
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  }
  config.attrs = &attribute;
  config.numAttrs = start == Start::plain ? 0 : 1;
  config.dynamicSmemBytes = 16 << 10;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

__global__ void shuffle_kernel(uint32_t* out) {
  DeviceWarp warp;
  for (int mask = 1; mask < 32; mask *= 2) {
    DeviceWarp::var<uint32_t> value;
    warp.lanes([&](int lane) { value[lane] = 100 + lane; });
    const auto other = warp.shuffle_xor(value, mask);
    warp.lanes([&](int lane) { out[mask * 32 + lane] = other[lane]; });
  }
}
bool shuffle_xor() {
  Buffer<uint32_t> out(1024, 0);
  check(launch(shuffle_kernel, 1, 32, Start::plain, out.device), "launch");
  out.fetch();
  for (int mask = 1; mask < 32; mask *= 2) {
    for (int lane = 0; lane < 32; ++lane) {
      if (out.host[mask * 32 + lane] != 100u + (lane ^ mask)) return false;
    }
  }
  return true;
}

// Fragments of small whole numbers, whose products have exact sums.
template <Math math>
uint32_t fragment_word(int i) {
  const auto number = [](int seed) { return static_cast<float>((seed * 37 + 11) % 17 - 8); };
  if constexpr (math == Math::tf32) {
    return bit_cast<uint32_t>(number(i));
  } else {
    using T = std::conditional_t<math == Math::bf16, bf16, fp16>;
    return from_real<T>(number(2 * i)).bits | static_cast<uint32_t>(from_real<T>(number(2 * i + 1)).bits)
                                                  << 16;
  }
}
template <Math math>
__global__ void mma_kernel(const uint32_t* words, float* out) {
  DeviceWarp warp;
  DeviceWarp::var<float> c[4];
  DeviceWarp::var<uint32_t> a[4], b[2];
  warp.lanes([&](int lane) {
    for (int i = 0; i < 4; ++i) a[i][lane] = words[i * 32 + lane], c[i][lane] = i + lane;
    for (int i = 0; i < 2; ++i) b[i][lane] = words[(4 + i) * 32 + lane];
  });
  warp.mma<math>(c, a, b);
  warp.lanes([&](int lane) {
    for (int i = 0; i < 4; ++i) out[i * 32 + lane] = c[i][lane];
  });
}
template <Math math>
bool mma() {
  Buffer<uint32_t> words(6 * 32, 0);
  for (int i = 0; i < 6 * 32; ++i) words.host[i] = fragment_word<math>(i);
  Buffer<uint32_t> copy(words.host);
  Buffer<float> out(4 * 32, 0);
  check(launch(mma_kernel<math>, 1, 32, Start::plain, copy.device, out.device), "launch");
  out.fetch();
  HostWarp::var<float> c[4];
  HostWarp::var<uint32_t> a[4], b[2];
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i)
      a[i][lane] = words.host[i * 32 + lane], c[i][lane] = static_cast<float>(i + lane);
    for (int i = 0; i < 2; ++i) b[i][lane] = words.host[(4 + i) * 32 + lane];
  }
  HostWarp::mma<math>(c, a, b);
  for (int i = 0; i < 4 * 32; ++i) {
    if (out.host[i] != c[i / 32][i % 32]) return false;
  }
  return true;
}

// Rounds in which every block writes, says so, waits for all and reads what all have written: where the last
// round's numbers stood in the same cache lines.
constexpr int kRounds = 2000;
__global__ void counter_kernel(uint32_t* data, uint32_t* counter, uint32_t* wrong) {
  DeviceWarp warp;
  const int blocks = gridDim.x;
  for (int round = 0; round < kRounds; ++round) {
    uint32_t* const mine = data + round % 2 * blocks * 64;
    if (threadIdx.x < 64) mine[blockIdx.x * 64 + threadIdx.x] = round * 1000 + blockIdx.x;
    warp.block_sync();
    if (warp.warp() == 0) {
      warp.signal(counter);
      warp.wait_counter(counter, blocks * (round + 1));
    }
    warp.block_sync();
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
bool signal_and_wait_counter() {
  const int blocks = 32;
  Buffer<uint32_t> data(2 * blocks * 64, 0), counter(1, 0), wrong(1, 0);
  check(launch(counter_kernel, blocks, 128, Start::cooperative, data.device, counter.device, wrong.device),
        "cooperative launch");
  return wrong.fetch()[0] == 0;
}

// The same through the shared memory of a cluster: two buffers behind the barriers at 0 and 8.
__global__ void push_kernel(uint32_t* wrong) {
#if __CUDA_ARCH__ >= 900
  DeviceWarp warp;
  const int blocks = gridDim.x, words = blocks * 64;
  const auto place = [&](int round, int i) { return 128 + (round % 2 * words + i) * 4; };
  if (warp.warp() == 0) {
    for (int buffer = 0; buffer < 2; ++buffer) {
      warp.barrier_init(8 * buffer);
      warp.barrier_expect(8 * buffer, 4 * words);
    }
  }
  warp.cluster_sync();
  for (int round = 0; round < kRounds; ++round) {
    const int at = 8 * (round % 2);
    for (int rank = 0; rank < blocks; ++rank) {
      const int i = blockIdx.x * 64 + threadIdx.x;
      warp.push(threadIdx.x % 32, rank, place(round, i), round * 1000 + i, at);
    }
    warp.barrier_wait(at, round / 2 % 2);
    if (warp.warp() == 0 && round + 2 < kRounds) warp.barrier_expect(at, 4 * words);
    for (int i = threadIdx.x; i < words; i += blockDim.x) {
      if (*warp.shared<uint32_t>(place(round, i)) != static_cast<uint32_t>(round * 1000 + i))
        atomicAdd(wrong, 1);
    }
    warp.block_sync();
  }
  warp.cluster_sync();
#endif
}
template <int blocks>
bool push_and_barrier_wait() {
  Buffer<uint32_t> wrong(1, 0);
  check(launch(push_kernel, blocks, 64, Start::cluster, wrong.device), "cluster launch");
  return wrong.fetch()[0] == 0;
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
  // CUDA documents 2 ulp for expf and tanhf; the sigmoid adds an addition and a division.
  const auto close = [](float got, double expected, double ulps) {
    if (std::isnan(expected)) return std::isnan(got);
    return std::abs(got - expected) <= ulps * std::ldexp(std::abs(expected), -23) + std::ldexp(1, -126);
  };
  for (int i = 0; i < count; ++i) {
    const double a = in.host[i];
    if (!close(sigmoid.host[i], 1 / (1 + std::exp(-a)), 5) || !close(tanh.host[i], std::tanh(a), 3))
      return false;
  }
  return true;
}

__global__ void lost_signal_kernel(uint32_t* counter) { DeviceWarp().wait_counter(counter, 1); }
bool lost_signal_is_an_error() {
  Buffer<uint32_t> counter(1, 0);
  check(launch(lost_signal_kernel, 1, 32, Start::plain, counter.device), "launch");
  return cudaDeviceSynchronize() != cudaSuccess;
}

struct Test {
  const char* name;
  int capability;  // at least
  bool (*run)();
};
const Test kTests[] = {
    {"shuffle_xor", 75, shuffle_xor},
    {"mma bf16", 80, mma<Math::bf16>},
    {"mma fp16", 80, mma<Math::fp16>},
    {"mma tf32", 80, mma<Math::tf32>},
    {"numbers", 75, numbers},
    {"activations", 75, activations},
    {"signal, wait_counter, load_fresh, block_sync", 80, signal_and_wait_counter},
    {"push, barrier_wait, cluster_sync: 1 block", 90, push_and_barrier_wait<1>},
    {"push, barrier_wait, cluster_sync: 4 blocks", 90, push_and_barrier_wait<4>},
    {"push, barrier_wait, cluster_sync: 8 blocks", 90, push_and_barrier_wait<8>},
    {"push, barrier_wait, cluster_sync: 16 blocks", 90, push_and_barrier_wait<16>},
};

int run_all(int capability) {
  bool right = true;
  for (const Test& test : kTests) {
    const bool possible = capability >= test.capability, passed = !possible || test.run();
    std::printf("%-45s %s\n", test.name, !possible ? "skipped: older device" : passed ? "passed" : "FAILED");
    std::fflush(stdout);
    right = right && passed;
  }
  return right ? 0 : 1;
}

}  // namespace
}  // namespace fastrnn::cuda

int main(int argc, char** argv) {
  using namespace fastrnn::cuda;
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "no GPU");
  if (argc > 1 && std::string(argv[1]) == "lost_signal") return lost_signal_is_an_error() ? 0 : 1;
  return run_all(10 * properties.major + properties.minor);
}
