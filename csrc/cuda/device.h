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

// A value for each device. It is computed when a thread first asks for it on that device.
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
  std::array<Known, 128> devices_;  // the most that torch supports
};

// The properties of the current device that a plan depends on.
const Device& current_device();

}  // namespace fastrnn::cuda
