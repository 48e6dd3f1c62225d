#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <mutex>

#include "cuda/check.h"
#include "cuda/plan.h"

namespace fastrnn::cuda {

inline int current_device_index() {
  int index = 0;
  check(cudaGetDevice(&index), "cudaGetDevice");
  return index;
}

// A value for each device, found when it is first asked for there.
template <class V>
class EachDevice {
 public:
  template <class F>
  const V& get(const F& find) {
    Known& known = devices_.at(current_device_index());
    std::call_once(known.once, [&] { known.value = find(); });
    return known.value;
  }

 private:
  struct Known {
    std::once_flag once;
    V value{};
  };
  std::array<Known, 128> devices_;  // as many as torch can have
};

// What a plan needs to know of the current device.
const Device& current_device();

}  // namespace fastrnn::cuda
