// A device "cuda" whose memory and kernels are the CPU's, for a torch that is built without CUDA: what Python
// does on a GPU can then be run without one. See ../fake_cuda.py.

#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_to_copy.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <functional>
#include <mutex>
#include <set>
#include <unordered_map>
#include <vector>

namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::IValue;
using c10::OperatorHandle;
using torch::jit::Stack;

constexpr DeviceIndex kDevices = 2;
constexpr auto kCuda = c10::DeviceType::CUDA;
thread_local DeviceIndex current = 0;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kCuda; }
  Device exchangeDevice(Device device) const override {
    const Device before = getDevice();
    setDevice(device);
    return before;
  }
  Device getDevice() const override { return {kCuda, current}; }
  void setDevice(Device device) const override { current = device.index(); }
  void uncheckedSetDevice(Device device) const noexcept override { current = device.index(); }
  c10::Stream getStream(Device device) const override { return c10::Stream(c10::Stream::UNSAFE, device, 0); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return getStream(stream.device()); }
  DeviceIndex deviceCount() const noexcept override { return kDevices; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

// Whom torch asks whether there is a CUDA at all.
struct CUDAHooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return kDevices; }
  int getNumGPUs() const override { return kDevices; }
  DeviceIndex current_device() const override { return current; }
  DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(DeviceIndex device) const override { current = device; }
  void deviceSynchronize(DeviceIndex) const override {}
};
// What a graph has captured, to run again.
struct Launch {
  OperatorHandle op;
  Stack arguments, results;
};
std::unordered_map<int64_t, std::vector<Launch>> graphs;
int64_t capturing = 0;  // a graph, 0 for none
bool may_wait = true;   // whether the host may wait for the device

bool is_cuda(const Tensor& tensor) { return tensor.defined() && tensor.device().type() == kCuda; }

// Another tensor of the same memory.
Tensor with_key(const Tensor& tensor, c10::DispatchKey key) {
  const c10::DispatchKeySet marks{c10::DispatchKey::Conjugate, c10::DispatchKey::Negative,
                                  c10::DispatchKey::ZeroTensor};
  c10::InferenceMode mode(tensor.is_inference());
  Tensor twin = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(tensor.storage()), c10::DispatchKeySet(key) | (tensor.key_set() & marks), tensor.dtype());
  twin.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(),
                                                    tensor.storage_offset());
  return twin;
}

void set_device(const c10::Storage& storage, Device device) {
  storage.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().unsafe_set_device(device);
}

void for_each_tensor(IValue& value, const std::function<Tensor(const Tensor&)>& change) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) value = change(value.toTensor());
  } else if (value.isTensorList()) {
    auto list = value.toTensorList().copy();
    for (size_t i = 0; i < list.size(); ++i) list.set(i, change(list.get(i)));
    value = list;
  } else if (value.isList()) {
    auto list = value.toList().copy();
    for (size_t i = 0; i < list.size(); ++i) {
      IValue element = list.get(i);
      if (element.isTensor() && element.toTensor().defined()) list.set(i, change(element.toTensor()));
    }
    value = list;
  }
}

// Tensors that kernels of CUDA take from the CPU.
bool may_be_on_the_cpu(const std::string& op, const std::string& argument) {
  static const std::set<std::string> names{"batch_sizes", "grads", "indices", "lengths"};
  return op == "aten::copy_" || names.count(argument) > 0;
}

// Run an operator by its CPU kernel: on tensors of the same memory that are labelled as the CPU's.
void run_on_cpu(const OperatorHandle& op, Stack* stack) {
  // Autograd's threads come here too, and what they label may be the same memory.
  static std::recursive_mutex mutex;
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  const auto& schema = op.schema();
  const std::string& name = schema.name();
  const bool is_copy = name == "aten::copy_", is_ours = name.rfind("fastrnn::", 0) == 0;
  const size_t count = schema.arguments().size();
  const Stack before(stack->end() - count, stack->end());
  bool waits = name == "aten::_local_scalar_dense" || name == "aten::nonzero" ||
               (is_copy && !is_cuda(before[0].toTensor()));

  std::optional<Device> device;
  bool is_mixed = false, has_half = false, has_other_floats = false;
  for (const auto i : c10::irange(count)) {
    IValue value = before[i];
    const std::string& argument = schema.arguments()[i].name();
    if (value.isDevice() && value.toDevice().type() == kCuda)
      device = value.toDevice().has_index() ? value.toDevice() : Device(kCuda, current);
    for_each_tensor(value, [&](const Tensor& tensor) {
      const bool is_half = tensor.scalar_type() == at::kHalf;
      has_half = has_half || is_half;
      has_other_floats = has_other_floats || (tensor.is_floating_point() && !is_half);
      if (is_cuda(tensor)) {
        TORCH_CHECK(!is_ours || argument != "batch_sizes",
                    "batch_sizes: expected a tensor on the CPU, got one on ", tensor.device());
        is_mixed = is_mixed || (device && *device != tensor.device() && !is_copy);
        if (!device) device = tensor.device();
      } else {
        is_mixed = is_mixed || (tensor.dim() > 0 && !may_be_on_the_cpu(name, argument));
      }
      return tensor;
    });
  }
  TORCH_CHECK(!is_mixed || is_ours,
              "Expected all tensors to be on the same device, but found at least two devices! (", name, ")");
  TORCH_CHECK(may_wait || !waits, "called a synchronizing CUDA operation: ", name);
  // fastrnn has its own words for tensors that do not fit. They come before anything is computed.
  const bool is_refused = is_ours && (is_mixed || (has_half && has_other_floats));

  std::vector<std::pair<Tensor, Tensor>> twins;  // the tensor, and what the CPU's kernel gets for it
  std::vector<c10::Storage> storages;
  Stack inner = before;
  for (IValue& value : inner) {
    if (value.isDevice() && value.toDevice().type() == kCuda) value = Device(c10::kCPU);
    if (value.isStorage() && value.toStorage().device().type() == kCuda) {
      device = value.toStorage().device();
      storages.push_back(value.toStorage());
      set_device(storages.back(), c10::kCPU);
    }
    for_each_tensor(value, [&](const Tensor& tensor) -> Tensor {
      if (!is_cuda(tensor)) return tensor;
      if (is_refused) return at::empty_like(tensor, at::TensorOptions(at::kMeta));
      set_device(tensor.storage(), c10::kCPU);
      Tensor twin = with_key(tensor, c10::DispatchKey::CPU);
      twins.emplace_back(tensor, twin);
      return is_ours && has_half && twin.scalar_type() == at::kHalf ? at::_to_copy(twin, at::kFloat) : twin;
    });
  }
  const auto put_back = [&] {
    for (auto& [tensor, twin] : twins) {
      set_device(twin.storage(), tensor.device());
      set_device(tensor.storage(), tensor.device());
    }
    for (const c10::Storage& storage : storages) set_device(storage, *device);
  };
  try {
    at::AutoDispatchBelowADInplaceOrView below;
    op.callBoxed(&inner);
  } catch (...) {
    put_back();
    throw;
  }
  put_back();
  TORCH_CHECK(!is_refused, name, " has taken tensors of several devices or dtypes");

  for (auto& [tensor, twin] : twins) {  // what resize_ and set_ change
    auto* impl = tensor.unsafeGetTensorImpl();
    if (!tensor.is_alias_of(twin)) impl->set_storage_keep_dtype(twin.storage());
    if (tensor.sizes() != twin.sizes() || tensor.strides() != twin.strides() ||
        tensor.storage_offset() != twin.storage_offset())
      impl->set_sizes_and_strides(twin.sizes(), twin.strides(), twin.storage_offset());
  }
  for (IValue& value : inner) {
    for_each_tensor(value, [&](const Tensor& result) -> Tensor {
      for (auto& [tensor, twin] : twins)
        if (result.is_same(twin)) return tensor;
      if (!device || (is_copy && waits)) return result;
      Tensor found = is_ours && has_half && result.scalar_type() == at::kFloat
                         ? at::_to_copy(result, at::kHalf)
                         : result;
      set_device(found.storage(), *device);
      return with_key(found, c10::DispatchKey::CUDA);
    });
  }
  if (capturing) graphs[capturing].push_back({op, before, inner});
  torch::jit::drop(*stack, count);
  stack->insert(stack->end(), inner.begin(), inner.end());
}

void replay(int64_t graph) {
  for (const Launch& launch : graphs[graph]) {
    Stack stack = launch.arguments, results = launch.results;
    run_on_cpu(launch.op, &stack);
    for (const auto i : c10::irange(stack.size())) {
      std::vector<Tensor> now;
      for_each_tensor(stack[i], [&](const Tensor& t) { return now.emplace_back(t); });
      size_t k = 0;
      for_each_tensor(results[i], [&](const Tensor& then) {
        if (!then.is_alias_of(now[k])) then.copy_(now[k]);
        ++k;
        return then;
      });
    }
  }
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>()); }

// This has a kernel for all devices, which asks for one of the device's own.
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

// torch has made its hooks when it was imported, so these go where those are.
void replace_hooks() {
  static_assert(sizeof(CUDAHooks) == sizeof(at::CUDAHooksInterface));
  new (const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks())) CUDAHooks;
}

// In the place of fastrnn's own kernels, which say that there are none.
void compute_layers() {
  static torch::Library library(torch::Library::IMPL, "fastrnn", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  for (const char* name : {"layer", "layer_forward", "layer_backward"})
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

void resize_storage(const Tensor& tensor, int64_t size) {
  const c10::Storage storage = tensor.storage();
  set_device(storage, c10::kCPU);
  at::native::resize_bytes_cpu(storage.unsafeGetStorageImpl(), size);
  set_device(storage, tensor.device());
}

TORCH_LIBRARY(fake_cuda, m) {
  m.def("resize_storage", &resize_storage);
  m.def("replace_hooks", &replace_hooks);
  m.def("compute_layers", &compute_layers);
  m.def("device", [] { return static_cast<int64_t>(current); });
  m.def("device_count", [] { return static_cast<int64_t>(kDevices); });
  m.def("set_device", [](int64_t device) { current = static_cast<DeviceIndex>(device); });
  m.def("capture", [](int64_t graph) { capturing = graph; });
  m.def("replay", &replay);
  m.def("set_may_wait", [](bool may) { may_wait = may; });
}

}  // namespace
