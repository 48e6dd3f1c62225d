#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace fastrnn::cpu::FASTRNN_ISA {

// Uninitialised scratch memory, aligned to a cache line, freed together.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() {
    for (int i = 0; i < count_; ++i) std::free(blocks_[i]);
  }

  template <class T>
  T* take(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    void* block = count_ < kMost ? std::aligned_alloc(64, bytes > 0 ? bytes : 64) : nullptr;
    if (block == nullptr) throw std::bad_alloc();
    blocks_[count_++] = block;
    return static_cast<T*>(block);
  }

 private:
  // Not a std::vector: its code would be compiled for this instruction set under a name that other objects
  // share.
  static constexpr int kMost = 32;
  void* blocks_[kMost];
  int count_ = 0;
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
