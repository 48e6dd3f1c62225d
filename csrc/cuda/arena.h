#pragma once

#include <cstdint>

namespace fastrnn::cuda {

// Hands out buffers, one after the other, from a block of memory. Without a block it only counts bytes: the code
// that takes the buffers also says how large the block must be.
class Arena {
 public:
  static constexpr int64_t kAlignment = 256;

  explicit Arena(void* block) : block_(static_cast<char*>(block)) {}

  template <class T>
  T* take(int64_t count) {
    T* buffer = block_ ? reinterpret_cast<T*>(block_ + bytes_) : nullptr;
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return buffer;
  }

  int64_t bytes() const { return bytes_; }

 private:
  char* block_;
  int64_t bytes_ = 0;
};

}  // namespace fastrnn::cuda
