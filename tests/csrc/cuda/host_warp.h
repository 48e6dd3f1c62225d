#pragma once

// The execution context of csrc/cuda/persistent/recurrence_loop.h on the host. A warp is a thread, a register of a warp
// is an array, and shared memory is a heap buffer. Atomics order what release and acquire order on the device, so
// ThreadSanitizer sees every access that is not ordered.

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "cuda/persistent/elements.h"
#include "cuda/plan.h"

namespace fastrnn::host {

// Faults that can be planted. The runner must catch each of them.
enum class Fault {
  none,
  relaxed_signal,  // signals have no release and acquire
  missing_wait,    // no warp waits for data
  lost_signal,     // a signal gets lost
  single_buffer,   // the two buffers of the exchange, or of the partial sums, are one
  short_tail,      // the last tile along k is left out if it is not full
};

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::fflush(nullptr);
  std::_Exit(3);
}

constexpr std::chrono::seconds kLongestWait{20};

template <class Ready>
void spin(const Ready& ready) {
  const auto end = std::chrono::steady_clock::now() + kLongestWait;
  for (int64_t i = 0; !ready(); ++i) {
    std::this_thread::yield();
    if (i % 64 == 63) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
      if (std::chrono::steady_clock::now() > end) fail("a wait was not answered in time");
    }
  }
}

// A barrier for `count` threads, which can be used again.
class ThreadBarrier {
 public:
  explicit ThreadBarrier(int count) : count_(count), left_(count) {}
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int64_t mine = generation_;
    if (--left_ == 0) {
      left_ = count_;
      ++generation_;
      all_.notify_all();
    } else if (!all_.wait_for(lock, kLongestWait, [&] { return generation_ != mine; })) {
      fail("a wait was not answered in time");
    }
  }

 private:
  const int count_;
  int left_;
  int64_t generation_ = 0;
  std::mutex mutex_;
  std::condition_variable all_;
};

// A barrier in shared memory. It counts one arrival, and as many bytes as are expected.
class ByteBarrier {
 public:
  void expect(uint32_t bytes, std::memory_order order) { change(bytes - kArrival, order); }
  void complete(uint32_t bytes, std::memory_order order) { change(-int64_t{bytes}, order); }
  bool passed(uint32_t parity, std::memory_order order) const { return phase_.load(order) % 2 != parity; }

 private:
  static constexpr int64_t kArrival = int64_t{1} << 40;

  void change(int64_t by, std::memory_order order) {
    if (pending_.fetch_add(by, order) + by == 0) {
      pending_.fetch_add(kArrival, std::memory_order_relaxed);
      phase_.fetch_add(1, order);
    }
  }

  std::atomic<int64_t> pending_{kArrival};
  std::atomic<uint32_t> phase_{0};
};

struct Block {
  Block(const cuda::Plan& plan, int64_t bytes, ThreadBarrier& cluster)
      : shared(new (std::align_val_t{128}) std::byte[bytes]),
        barriers(plan.kind == cuda::Kind::cluster ? 2 * plan.tiles : 0),
        warps(plan.row_warps * plan.k_warps),
        cluster(cluster) {
    std::memset(shared.get(), 0xff, bytes);  // NaN: nothing is written yet
  }
  struct Free {
    void operator()(std::byte* bytes) const { operator delete[](bytes, std::align_val_t{128}); }
  };
  std::unique_ptr<std::byte[], Free> shared;
  std::vector<ByteBarrier> barriers;
  ThreadBarrier warps;
  ThreadBarrier& cluster;
};

class HostWarp {
 public:
  template <class V>
  using var = std::array<V, 32>;

  HostWarp(std::vector<std::unique_ptr<Block>>& blocks, int blocks_of_group, int block, int direction,
           int warp, Fault fault)
      : blocks_(blocks),
        me_(*blocks[block]),
        first_peer_(block / blocks_of_group * blocks_of_group),
        block_(block),
        direction_(direction),
        warp_(warp),
        fault_(fault),
        release_(fault == Fault::relaxed_signal ? std::memory_order_relaxed : std::memory_order_acq_rel),
        acquire_(fault == Fault::relaxed_signal ? std::memory_order_relaxed : std::memory_order_acquire) {}

  template <class F>
  void lanes(const F& f) {
    for (int lane = 0; lane < 32; ++lane) f(lane);
  }
  int warp() const { return warp_; }
  int block() const { return block_; }
  int direction() const { return direction_; }
  template <class V>
  V* shared(int64_t offset) const {
    return reinterpret_cast<V*>(me_.shared.get() + offset);
  }
  void block_sync() { me_.warps.wait(); }
  void warp_sync() {}  // a warp is one thread
  void cluster_sync() { me_.cluster.wait(); }

  template <class V>
  var<V> shuffle_xor(const var<V>& value, int mask) {
    var<V> result;
    for (int lane = 0; lane < 32; ++lane) result[lane] = value[lane ^ mask];
    return result;
  }

  struct Matrices {
    const char* rows;
    int64_t row_bytes;
  };
  static Matrices matrices(const void* rows, int64_t row_bytes) {
    return {static_cast<const char*>(rows), row_bytes};
  }
  static void load_matrices(var<uint32_t> (&words)[4], Matrices matrices, int offset) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int lane = 0; lane < 32; ++lane) {
        const char* row = matrices.rows + lane / 4 * matrices.row_bytes + offset + 16 * matrix;
        std::memcpy(&words[matrix][lane], row + 4 * (lane % 4), 4);
      }
    }
  }
  template <class V>
  static void keep(V&) {}

  // As the tables of the PTX manual say: m16n8k16 for 16-bit numbers, m16n8k8 for tf32.
  template <cuda::Math math>
  static void mma(var<float> (&c)[4], const var<uint32_t> (&a)[4], const var<uint32_t> (&b)[2]) {
    constexpr bool halves = math != cuda::Math::tf32;
    constexpr int K = halves ? 16 : 8;
    float A[16][K], B[K][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int tile_row = lane >> 2, row_lane = lane & 3;
      for (int i = 0; i < 4; ++i) {
        const int row = i == 0 || i == 2 ? tile_row : tile_row + 8;
        if (halves) {
          const int col = row_lane * 2 + (i >= 2 ? 8 : 0);
          A[row][col] = number<math>(a[i][lane] & 0xffff);
          A[row][col + 1] = number<math>(a[i][lane] >> 16);
        } else {
          A[row][row_lane + (i >= 2 ? 4 : 0)] = number<math>(a[i][lane]);
        }
      }
      for (int i = 0; i < 2; ++i) {
        if (halves) {
          B[row_lane * 2 + 8 * i][tile_row] = number<math>(b[i][lane] & 0xffff);
          B[row_lane * 2 + 8 * i + 1][tile_row] = number<math>(b[i][lane] >> 16);
        } else {
          B[row_lane + 4 * i][tile_row] = number<math>(b[i][lane]);
        }
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = (lane >> 2) + (i < 2 ? 0 : 8), col = (lane & 3) * 2 + (i & 1);
        float sum = 0;
        for (int k = 0; k < K; ++k) sum += A[row][k] * B[k][col];
        c[i][lane] += sum;
      }
    }
  }

  template <class V>
  V load_fresh(const void* address) const {
    return cuda::read_as<V>(address);
  }
  void signal(uint32_t* counter) {
    if (fault_ != Fault::lost_signal) std::atomic_ref<uint32_t>(*counter).fetch_add(1, release_);
  }
  void wait_counter(uint32_t* counter, uint32_t value, bool /*limited*/) {
    if (fault_ == Fault::missing_wait) return;
    spin([&] {
      return static_cast<int32_t>(std::atomic_ref<uint32_t>(*counter).load(acquire_) - value) >= 0;
    });
  }

  void barrier_init(int64_t) {}
  void barrier_expect(int64_t at, uint32_t bytes) { me_.barriers[at / 8].expect(bytes, release_); }
  void barrier_wait(int64_t at, uint32_t parity) {
    if (fault_ == Fault::missing_wait) return;
    spin([&] { return me_.barriers[at / 8].passed(parity, acquire_); });
  }
  void push(int, int rank, int64_t to, uint32_t word, int64_t at) {
    Block& peer = *blocks_[first_peer_ + rank];
    std::memcpy(peer.shared.get() + to, &word, sizeof(word));
    if (fault_ != Fault::lost_signal) peer.barriers[at / 8].complete(sizeof(word), release_);
  }

 private:
  template <cuda::Math math>
  static float number(uint32_t bits) {
    if constexpr (math == cuda::Math::tf32) {
      if ((bits & 0x1fff) != 0 && (bits & 0x7f800000) != 0x7f800000) fail("a number is not rounded to tf32");
      return cuda::bit_cast<float>(bits & 0xffffe000);  // the matrix unit does not read the other bits
    } else if constexpr (math == cuda::Math::bf16) {
      return cuda::to_real(bf16{static_cast<uint16_t>(bits)});
    } else {
      return cuda::to_real(fp16{static_cast<uint16_t>(bits)});
    }
  }

  std::vector<std::unique_ptr<Block>>& blocks_;
  Block& me_;
  const int first_peer_, block_, direction_, warp_;
  const Fault fault_;
  const std::memory_order release_, acquire_;
};

// Runs body(context) as every warp of a grid of `directions` times block_groups * blocks blocks.
template <class Body>
void launch(const cuda::Plan& plan, int directions, int64_t shared_bytes, Fault fault, const Body& body) {
  const int grid = plan.blocks * plan.block_groups, warps = plan.row_warps * plan.k_warps;
  std::vector<std::unique_ptr<ThreadBarrier>> clusters;
  std::vector<std::vector<std::unique_ptr<Block>>> blocks(directions);
  std::vector<std::thread> threads;
  for (int d = 0; d < directions; ++d) {
    for (int b = 0; b < grid; ++b) {
      if (b % plan.blocks == 0) clusters.push_back(std::make_unique<ThreadBarrier>(plan.blocks * warps));
      blocks[d].push_back(std::make_unique<Block>(plan, shared_bytes, *clusters.back()));
    }
  }
  for (int d = 0; d < directions; ++d) {
    for (int b = 0; b < grid; ++b) {
      for (int warp = 0; warp < warps; ++warp) {
        threads.emplace_back([&, d, b, warp] {
          HostWarp context(blocks[d], plan.blocks, b, d, warp, fault);
          body(context);
        });
      }
    }
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace fastrnn::host
