// A layer on a CUDA device: hands what csrc/cuda needs of torch to it.

#include "torch/cuda.h"

#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAStream.h>

#include <optional>

#include "cuda/device.h"
#include "cuda/layer.h"

namespace fastrnn::torch_ops {
namespace {

// torch.backends.cudnn.rnn.fp32_precision, and the switches that set it. torch 2.9 asks for an operation by a
// string, later versions by an enumerator.
template <class Op>
bool rnn_may_use_tf32(bool (at::Context::*may)(std::optional<Op>) const) {
  return (at::globalContext().*may)(Op::RNN);
}
bool rnn_may_use_tf32(bool (at::Context::*may)(const std::string&) const) {
  return (at::globalContext().*may)("rnn");
}

template <class T>
cuda::Math math_of() {
  if constexpr (std::is_same_v<T, double>) {
    return cuda::Math::fp64;
  } else if constexpr (std::is_same_v<T, fp16>) {
    return cuda::Math::fp16;
  } else if constexpr (std::is_same_v<T, bf16>) {
    return cuda::Math::bf16;
  } else {
    const bool tf32 =
        cuda::current_device().capability >= 80 && rnn_may_use_tf32(&at::Context::allowTF32CuDNN);
    return tf32 ? cuda::Math::tf32 : cuda::Math::ieee;
  }
}

// Calls run with a context of the current device and stream. The scratch memory goes back to torch's
// allocator as soon as the work is in the stream, and is used again only behind it.
template <class T, class F>
void with_context(const F& run) {
  // A first call may be captured into a graph, and loads kernels and asks what fits.
  const c10::cuda::CUDAStreamCaptureModeGuard may_load(cudaStreamCaptureModeRelaxed);
  at::Tensor scratch;
  run(cuda::Context{.stream = c10::cuda::getCurrentCUDAStream(),
                    .blas = at::cuda::getCurrentCUDABlasHandle(),
                    .math = math_of<T>(),
                    .allocate = [&](int64_t bytes) {
                      scratch = at::empty({bytes}, at::TensorOptions().device(at::kCUDA).dtype(at::kByte));
                      return scratch.mutable_data_ptr();
                    }});
}

}  // namespace

template <class T>
void Cuda::forward(int cell, const ForwardParams<T>& p) const {
  with_context<T>([&](const cuda::Context& context) { cuda::kernels_of<T>(cell).forward(p, context); });
}

template <class T>
void Cuda::backward(int cell, const BackwardParams<T>& p) const {
  with_context<T>([&](const cuda::Context& context) { cuda::kernels_of<T>(cell).backward(p, context); });
}

cuda::Plan plan_on_device(int cell, const cuda::Problem& problem) {
  const auto plan = [&]<class T>() { return cuda::kernels_of<T>(cell).plan(problem); };
  switch (problem.math) {
    case cuda::Math::fp64:
      return plan.operator()<double>();
    case cuda::Math::fp16:
      return plan.operator()<fp16>();
    case cuda::Math::bf16:
      return plan.operator()<bf16>();
    default:
      return plan.operator()<float>();
  }
}

#define FASTRNN_DTYPE(T)                                              \
  template void Cuda::forward<T>(int, const ForwardParams<T>&) const; \
  template void Cuda::backward<T>(int, const BackwardParams<T>&) const;
FASTRNN_DTYPE(float)
FASTRNN_DTYPE(double)
FASTRNN_DTYPE(fp16)
FASTRNN_DTYPE(bf16)
#undef FASTRNN_DTYPE

}  // namespace fastrnn::torch_ops
