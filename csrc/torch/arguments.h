#pragma once

// What kernels read and write, as pointers.

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/irange.h>

#include <vector>

#include "core/rows.h"
#include "cpu/engine.h"
#include "torch/layer.h"

namespace fastrnn::torch_ops {

// span: from the tensor's first number to its last.
inline void check_span(const Tensor& tensor, size_t span, const char* name, const char* suffix = "") {
  const size_t needed = span == 0 ? 0 : (tensor.storage_offset() + span) * tensor.itemsize();
  const size_t there = tensor.storage().nbytes();
  TORCH_CHECK(needed <= there, name, suffix, ": expected a storage of at least ", needed,
              " bytes for its size ", tensor.sizes(), ", got one of ", there, ": it was resized");
}

// Holds what the pointers in a parameter struct point to.
class Arguments {
 public:
  Arguments(const Tensor& x, const optional<Tensor>& batch_sizes, int64_t T, int64_t B, bool batch_first)
      : rows{T, B, 0, 1, nullptr, nullptr} {
    if (batch_sizes) {
      TORCH_CHECK(batch_sizes->is_cpu(), "batch_sizes: expected a tensor on the CPU, got one on ",
                  batch_sizes->device());
      rows.batch_sizes = read<int64_t>(*batch_sizes, "batch_sizes");
      while (rows.T > 0 && rows.batch_sizes[rows.T - 1] == 0) --rows.T;  // steps that no sequence has
      offsets_.resize(rows.T + 1, 0);
      for (const auto t : c10::irange(rows.T)) {
        const int64_t n = rows.batch_sizes[t], most = t == 0 ? rows.B : rows.batch_sizes[t - 1];
        TORCH_CHECK(n > 0 && n <= most && (t > 0 || n == rows.B),
                    "batch_sizes: expected to begin with the batch size ", rows.B,
                    " of hx and never to grow, got ", n, " at step ", t);
        offsets_[t + 1] = offsets_[t] + n;
      }
      TORCH_CHECK(offsets_[rows.T] == x.size(0), "batch_sizes: expected to add up to the ", x.size(0),
                  " rows of the input, got ", offsets_[rows.T]);
      rows.offsets = offsets_.data();
    } else if (batch_first && rows.B > 1) {
      rows.stride_t = 1;
      rows.stride_b = rows.T;
    } else {
      rows.stride_t = rows.B;
    }
  }

  // Null for an undefined tensor.
  template <class T>
  const T* read(const Tensor& tensor, const char* name, const char* suffix = "") {
    if (!tensor.defined()) return nullptr;
    if (tensor.is_contiguous() && !tensor.is_neg() && !tensor._is_zerotensor()) {
      check_span(tensor, tensor.numel(), name, suffix);
      return static_cast<const T*>(tensor.const_data_ptr());
    }
    // torch's fallbacks for tensors that are only marked as zero or negative pass over lists of optional ones.
    if (tensor._is_zerotensor()) {
      kept_.push_back(at::zeros(tensor.sizes(), tensor.options()));
    } else {
      check_storage(tensor, name, suffix);
      kept_.push_back(tensor.resolve_neg().contiguous());
    }
    return static_cast<const T*>(kept_.back().const_data_ptr());
  }

  Rows rows;

 private:
  std::vector<int64_t> offsets_;
  std::vector<Tensor> kept_;
};

// Null for an undefined tensor.
template <class T>
T* data(const Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

inline cpu::Resources cpu_resources() {
  return {at::in_parallel_region() ? 1 : at::get_num_threads(), c10::alloc_cpu, c10::free_cpu};
}

}  // namespace fastrnn::torch_ops
