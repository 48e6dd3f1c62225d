#pragma once

#include <cuda_runtime.h>

#include "cuda/persistent/elements.h"

// The execution context of csrc/cuda/persistent/recurrence_loop.h on a device: thin wrappers around PTX instructions.

namespace fastrnn::cuda {

class DeviceWarp {
 public:
  // longest_wait: nanoseconds, or 0 for no limit. A longer wait means that a block is lost. Then a trap ends the
  // kernel, and the next synchronisation reports it. So nothing hangs.
  __device__ __forceinline__ explicit DeviceWarp(uint64_t longest_wait) : longest_wait_(longest_wait) {}

  template <class V>
  struct var {
    V value;
    __device__ __forceinline__ V& operator[](int) { return value; }
    __device__ __forceinline__ const V& operator[](int) const { return value; }
  };

  template <class F>
  __device__ __forceinline__ void lanes(const F& f) const {
    f(lane());
  }
  __device__ __forceinline__ int warp() const { return threadIdx.x / 32; }
  __device__ __forceinline__ int block() const { return blockIdx.x; }
  __device__ __forceinline__ int direction() const { return blockIdx.y; }

  template <class V>
  __device__ __forceinline__ V* shared(int64_t offset) const {
    extern __shared__ __align__(128) unsigned char memory[];
    return reinterpret_cast<V*>(memory + offset);
  }
  __device__ __forceinline__ void block_sync() const { __syncthreads(); }
  __device__ __forceinline__ void warp_sync() const { __syncwarp(); }

  template <class V>
  __device__ __forceinline__ var<V> shuffle_xor(const var<V>& value, int mask) const {
    return {__shfl_xor_sync(0xffffffff, value.value, mask)};
  }

  template <Math math>
  __device__ __forceinline__ void mma(var<float> (&c)[4], const var<uint32_t> (&a)[4],
                                      const var<uint32_t> (&b)[2]) const {
#define FASTRNN_MMA(shape_and_types)                                                         \
  asm("mma.sync.aligned." shape_and_types                                                    \
      " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "                                      \
      "{%0, %1, %2, %3};"                                                                    \
      : "+f"(c[0].value), "+f"(c[1].value), "+f"(c[2].value), "+f"(c[3].value)               \
      : "r"(a[0].value), "r"(a[1].value), "r"(a[2].value), "r"(a[3].value), "r"(b[0].value), \
        "r"(b[1].value))
    if constexpr (math == Math::bf16) {
      FASTRNN_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
    } else if constexpr (math == Math::fp16) {
      FASTRNN_MMA("m16n8k16.row.col.f32.f16.f16.f32");
    } else {
      FASTRNN_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
    }
#undef FASTRNN_MMA
  }

  struct Matrices {
    uint32_t at;  // the row that a lane names, in the first matrix of its kind
  };
  __device__ __forceinline__ Matrices matrices(const void* rows, int64_t row_bytes) const {
    const auto row = static_cast<const unsigned char*>(rows) + lane() % 8 * row_bytes + lane() / 8 * 16;
    Matrices matrices{static_cast<uint32_t>(__cvta_generic_to_shared(row))};
    asm volatile("" : "+r"(matrices.at));  // or the compiler would compute it anew for each load
    return matrices;
  }
  __device__ __forceinline__ void load_matrices(var<uint32_t> (&words)[4], Matrices matrices,
                                                int offset) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0].value), "=r"(words[1].value), "=r"(words[2].value), "=r"(words[3].value)
                 : "r"(matrices.at + offset)
                 : "memory");
  }

  // The compiler would compute these anew in every iteration.
  template <class V>
  __device__ __forceinline__ static void keep(V*& pointer) {
    asm volatile("" : "+l"(pointer));
    __builtin_assume(__isGlobal(pointer));  // which the compiler has forgotten
  }

  // Reads from the second-level cache, which all blocks share. The first-level cache may hold an old value.
  template <class V>
  __device__ __forceinline__ V load_fresh(const void* address) const {
    if constexpr (sizeof(V) == 16) {
      return bit_cast<V>(__ldcg(static_cast<const uint4*>(address)));
    } else if constexpr (sizeof(V) == 4) {
      return bit_cast<V>(__ldcg(static_cast<const uint32_t*>(address)));
    } else {
      return bit_cast<V>(__ldcg(static_cast<const unsigned short*>(address)));
    }
  }

  // After a block_sync(), the release of one lane covers all that the block has written.
  __device__ __forceinline__ void signal(uint32_t* counter) const {
    if (lane() == 0) {
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
    }
  }
  __device__ __forceinline__ void wait_counter(const uint32_t* counter, uint32_t value, bool limited) const {
    wait(limited, [&] {
      uint32_t seen;
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
      return static_cast<int32_t>(seen - value) >= 0;
    });
  }

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  __device__ __forceinline__ void cluster_sync() const {
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n"
        "barrier.cluster.wait.acquire.aligned;" ::
            : "memory");
  }
  // The other blocks see the barrier after the next cluster_sync().
  __device__ __forceinline__ void barrier_init(int64_t at) const {
    if (lane() == 0) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(at)) : "memory");
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
  }
  __device__ __forceinline__ void barrier_expect(int64_t at, uint32_t bytes) const {
    if (lane() == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(at)), "r"(bytes)
                   : "memory");
    }
  }
  // The pushed data is in the shared memory of this block, so the scope of the block, the default, is enough. The
  // scope of the cluster would empty the first-level cache at every poll.
  __device__ __forceinline__ void barrier_wait(int64_t at, uint32_t parity) const {
    wait(true, [&] {
      uint32_t passed;
      asm volatile(
          "{\n"
          ".reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n"
          "}"
          : "=r"(passed)
          : "r"(address(at)), "r"(parity)
          : "memory");
      return passed != 0;
    });
  }
  __device__ __forceinline__ void push(int /*lane*/, int rank, int64_t to, uint32_t word, int64_t at) const {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(peer(to, rank)),
        "r"(word), "r"(peer(at, rank))
        : "memory");
  }
#endif

 private:
  __device__ __forceinline__ int lane() const { return threadIdx.x % 32; }
  __device__ __forceinline__ uint32_t address(int64_t offset) const {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared<unsigned char>(offset)));
  }
  __device__ __forceinline__ uint32_t peer(int64_t offset, int rank) const {
    uint32_t result;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(result) : "r"(address(offset)), "r"(rank));
    return result;
  }

  template <class Ready>
  __device__ __forceinline__ void wait(bool limited, const Ready& ready) const {
    // To read the clock takes long.
    constexpr uint32_t kPollsPerLook = 256;
    uint64_t begin = 0;
    for (uint32_t polls = 1; !ready(); ++polls) {
      if (polls % kPollsPerLook != 0 || !limited || longest_wait_ == 0) continue;
      const uint64_t time = now();
      if (begin == 0) begin = time;
      if (time - begin > longest_wait_) __trap();
    }
  }
  __device__ __forceinline__ uint64_t now() const {
    uint64_t time;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
    return time;
  }

  const uint64_t longest_wait_;
};

}  // namespace fastrnn::cuda
