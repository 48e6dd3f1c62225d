#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#include "cpu/engine.h"
#include "cpu/tuning.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// Uninitialised scratch memory, aligned to a cache line, freed together. The first of it stands in the object:
// allocating and freeing what a single small step needs would take longer than the step.
class Workspace {
 public:
  explicit Workspace(const Resources& resources) : resources_(resources) {}
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() {
    for (int i = 0; i < count_; ++i) resources_.release(blocks_[i]);
  }

  template <class T>
  T* take(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + kLine - 1) / kLine * kLine;
    if (bytes <= sizeof(first_) - used_) {
      void* block = first_ + used_;
      used_ += bytes;
      return static_cast<T*>(block);
    }
    if (count_ == kMost) throw std::bad_alloc();
    blocks_[count_] = resources_.allocate(bytes);
    return static_cast<T*>(blocks_[count_++]);
  }

 private:
  static constexpr size_t kLine = tuning::kLine;
  const Resources resources_;
  alignas(kLine) char first_[tuning::kStackBytes];
  size_t used_ = 0;
  // Not a std::vector: its code would be compiled for this instruction set under a name that other objects
  // share.
  static constexpr int kMost = 32;
  void* blocks_[kMost];
  int count_ = 0;
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
