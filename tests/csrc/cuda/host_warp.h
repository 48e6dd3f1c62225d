#pragma once

// The execution context of csrc/cuda/sweep.h on the host: a warp is a thread, a register of a warp is an array,
// shared memory is a heap buffer, and what the device orders by release and acquire is ordered by atomics, so
// that ThreadSanitizer sees every access that is not.

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

#include "cuda/plan.h"
#include "cuda/product.h"

namespace fastrnn::host {

// Faults that can be planted, each of which the runner must catch.
enum class Fault {
  none,
  relaxed_signal,  // data is announced without release and acquire
  missing_wait,    // nobody waits for it
  lost_signal,     // it is never announced
  single_buffer,   // the two buffers of the exchange, or of the partial sums, are one
  short_tail,      // the last tile along k is left out where it is not full
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

// Where `count` threads meet, again and again.
class Meeting {
 public:
  explicit Meeting(int count) : count(count), left(count) {}
  void arrive() {
    std::unique_lock<std::mutex> lock(mutex);
    const int64_t mine = generation;
    if (--left == 0) {
      left = count;
      ++generation;
      all.notify_all();
    } else if (!all.wait_for(lock, kLongestWait, [&] { return generation != mine; })) {
      fail("a wait was not answered in time");
    }
  }

 private:
  const int count;
  int left;
  int64_t generation = 0;
  std::mutex mutex;
  std::condition_variable all;
};

// A barrier in shared memory that counts bytes: one arrival, and as many bytes as are expected.
class ByteBarrier {
 public:
  void expect(uint32_t bytes, std::memory_order order) { change(bytes - kArrival, order); }
  void complete(uint32_t bytes, std::memory_order order) { change(-int64_t{bytes}, order); }
  bool passed(uint32_t parity, std::memory_order order) const { return phase.load(order) % 2 != parity; }

 private:
  static constexpr int64_t kArrival = int64_t{1} << 40;

  void change(int64_t by, std::memory_order order) {
    if (pending.fetch_add(by, order) + by == 0) {
      pending.fetch_add(kArrival, std::memory_order_relaxed);
      phase.fetch_add(1, order);
    }
  }

  std::atomic<int64_t> pending{kArrival};
  std::atomic<uint32_t> phase{0};
};

struct Block {
  Block(const cuda::Plan& plan, int64_t bytes, Meeting& cluster)
      : shared(new (std::align_val_t{128}) std::byte[bytes]),
        barriers(plan.tier == 2 ? 2 * plan.tiles : 0),
        warps(plan.row_warps * plan.k_warps),
        cluster(cluster) {
    std::memset(shared.get(), 0xff, bytes);  // NaN, as nobody has written it yet
  }
  struct Free {
    void operator()(std::byte* bytes) const { operator delete[](bytes, std::align_val_t{128}); }
  };
  std::unique_ptr<std::byte[], Free> shared;
  std::vector<ByteBarrier> barriers;
  Meeting warps;
  Meeting& cluster;
};

class HostWarp {
 public:
  template <class V>
  using var = std::array<V, 32>;

  HostWarp(std::vector<std::unique_ptr<Block>>& blocks, int blocks_in_group, int block, int direction,
           int warp, Fault fault)
      : blocks_(blocks),
        me_(*blocks[block]),
        first_peer_(block / blocks_in_group * blocks_in_group),
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
  void block_sync() { me_.warps.arrive(); }
  void warp_sync() {}  // a warp is one thread
  void cluster_sync() { me_.cluster.arrive(); }

  template <class V>
  var<V> shuffle_xor(const var<V>& value, int mask) {
    var<V> result;
    for (int lane = 0; lane < 32; ++lane) result[lane] = value[lane ^ mask];
    return result;
  }

  // By the tables of the PTX manual: m16n8k16 for 16-bit numbers, m16n8k8 for tf32.
  template <cuda::Math math>
  static void mma(var<float> (&c)[4], const var<uint32_t> (&a)[4], const var<uint32_t> (&b)[2]) {
    constexpr bool halves = math != cuda::Math::tf32;
    constexpr int K = halves ? 16 : 8;
    float A[16][K], B[K][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int group = lane >> 2, member = lane & 3;
      for (int i = 0; i < 4; ++i) {
        const int row = i == 0 || i == 2 ? group : group + 8;
        if (halves) {
          const int col = member * 2 + (i >= 2 ? 8 : 0);
          A[row][col] = number<math>(a[i][lane] & 0xffff);
          A[row][col + 1] = number<math>(a[i][lane] >> 16);
        } else {
          A[row][member + (i >= 2 ? 4 : 0)] = number<math>(a[i][lane]);
        }
      }
      for (int i = 0; i < 2; ++i) {
        if (halves) {
          B[member * 2 + 8 * i][group] = number<math>(b[i][lane] & 0xffff);
          B[member * 2 + 8 * i + 1][group] = number<math>(b[i][lane] >> 16);
        } else {
          B[member + 4 * i][group] = number<math>(b[i][lane]);
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
      return cuda::bit_cast<float>(bits & 0xffffe000);  // the matrix unit does not read the others
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

// Runs body(context) as every warp of a grid of `directions` times groups * blocks blocks.
template <class Body>
void launch(const cuda::Plan& plan, int directions, int64_t shared_bytes, Fault fault, const Body& body) {
  const int grid = plan.blocks * plan.groups, warps = plan.row_warps * plan.k_warps;
  std::vector<std::unique_ptr<Meeting>> clusters;
  std::vector<std::vector<std::unique_ptr<Block>>> blocks(directions);
  std::vector<std::thread> threads;
  for (int d = 0; d < directions; ++d) {
    for (int b = 0; b < grid; ++b) {
      if (b % plan.blocks == 0) clusters.push_back(std::make_unique<Meeting>(plan.blocks * warps));
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
