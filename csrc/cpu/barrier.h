#pragma once

#include <atomic>
#include <cstdint>

namespace fastrnn::cpu {

// The threads of a team wait for each other. All of them pass the same size.
class Barrier {
 public:
  void wait(int size);

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

}  // namespace fastrnn::cpu
