#include "cuda/device.h"
#include "cuda/persistent/tiling.h"

namespace fastrnn::cuda {
namespace {

int attribute(cudaDeviceAttr name) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, current_device_index()), "cudaDeviceGetAttribute");
  return value;
}

// Stands for any kernel whose block fills an SM.
__global__ void fill() {}

// The number of clusters of `blocks` such blocks that run at once.
int count_clusters(int blocks, int64_t shared_bytes) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(32 * kMostWarps);
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, fill, &config) == cudaSuccess) return clusters;
  cudaGetLastError();  // the device does not support this cluster size
  return 0;
}

Device describe_device() {
  Device device{
      attribute(cudaDevAttrMultiProcessorCount),
      10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor),
      attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
      {}};
  if (device.capability < 90) return device;
  check(cudaFuncSetAttribute(fill, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(device.shared_bytes)),
        "cudaFuncSetAttribute");
  check(cudaFuncSetAttribute(fill, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
        "cudaFuncSetAttribute");
  for (int blocks = 1; blocks <= kMostCluster; ++blocks) {
    device.clusters[blocks - 1] = count_clusters(blocks, device.shared_bytes);
  }
  return device;
}

}  // namespace

const Device& current_device() {
  static EachDevice<Device> devices;
  return devices.get(describe_device);
}

}  // namespace fastrnn::cuda
