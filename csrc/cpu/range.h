#pragma once

#include <algorithm>
#include <cstdint>

namespace fastrnn::cpu::FASTRNN_ISA {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Range {
  int64_t begin, end;
};

// In which order panels and tasks are taken.
enum class Order { ascending, descending };

// Block i of `count` things that are cut into blocks of `size`.
inline Range block_of(int64_t i, int64_t size, int64_t count) {
  return {i * size, std::min((i + 1) * size, count)};
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
