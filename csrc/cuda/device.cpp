#include <array>
#include <mutex>

#include "cuda/check.h"
#include "cuda/layer.h"

namespace fastrnn::cuda {
namespace {

int attribute(cudaDeviceAttr name, int index) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, index), "cudaDeviceGetAttribute");
  return value;
}

struct Known {
  std::once_flag once;
  Device device;
};

}  // namespace

Device current_device() {
  static std::array<Known, 128> devices;  // as many as torch can have
  int index = 0;
  check(cudaGetDevice(&index), "cudaGetDevice");
  Known& known = devices.at(index);
  std::call_once(known.once, [&] {
    known.device = {attribute(cudaDevAttrMultiProcessorCount, index),
                    10 * attribute(cudaDevAttrComputeCapabilityMajor, index) +
                        attribute(cudaDevAttrComputeCapabilityMinor, index),
                    attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index)};
  });
  return known.device;
}

}  // namespace fastrnn::cuda
