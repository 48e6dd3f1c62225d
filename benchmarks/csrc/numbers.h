#pragma once

// Buffers of random numbers, and names of dtypes.

#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "core/params.h"
#include "cpu/gemm/simd.h"
#include "cpu/tuning.h"

namespace benchmarks {

namespace tuning = fastrnn::cpu::tuning;
using namespace fastrnn;
using namespace fastrnn::cpu::FASTRNN_ISA;

template <class T>
std::string dtype_name() {
  return std::is_same_v<T, bf16> ? "bfloat16" : std::is_same_v<T, float> ? "float" : "double";
}

// Numbers in [-1, 1), aligned to a cache line, with a line more at the end.
template <class T>
class Numbers {
 public:
  explicit Numbers(int64_t n) : memory_(n * sizeof(T) + 2 * kLine) {
    void* at = memory_.data();
    size_t space = memory_.size();
    data_ = static_cast<T*>(std::align(kLine, n * sizeof(T) + kLine, at, space));
    std::minstd_rand random;
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (int64_t i = 0; i < n; ++i) set(data_[i], uniform(random));
  }
  operator T*() const { return data_; }

 private:
  static constexpr size_t kLine = tuning::kLine;

  static void set(float& to, float number) { to = number; }
  static void set(double& to, float number) { to = number; }
  static void set(bf16& to, float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof(bits));
    to.bits = static_cast<uint16_t>(bits >> 16);
  }

  std::vector<char> memory_;
  T* data_;
};

}  // namespace benchmarks
