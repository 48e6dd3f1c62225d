#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/gemm/simd.h"
#include "cpu/tuning.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// Rows of memory that cells will read or write. The tiles of the product before them fetch these rows into the
// cache line by line. Without that the cells wait for memory, and fetching all at once has not helped.
class PrefetchList {
 public:
  explicit PrefetchList(int64_t rows) : rows_(rows) {}

  // The first n numbers of each row; rows are `stride` numbers apart. The lines are those of the first row: the
  // last number of a row that begins elsewhere in its line may be left out.
  template <class S>
  void add(const S* first, int64_t n, int64_t stride) {
    const auto begin = reinterpret_cast<uintptr_t>(first), end = begin + n * sizeof(S);
    for (uintptr_t line = begin - begin % tuning::kLine; line < end && count_ < tuning::kPrefetchColumns;
         line += tuning::kLine) {
      columns_[count_++] = {line, stride * static_cast<int64_t>(sizeof(S))};
      left_ += rows_;
    }
  }

  int64_t left() const { return left_; }  // lines

  FASTRNN_INLINE void fetch() {
    Column& column = columns_[next_];
    __builtin_prefetch(reinterpret_cast<const void*>(column.line));
    column.line += column.stride;
    next_ = next_ + 1 == count_ ? 0 : next_ + 1;
    --left_;
  }

 private:
  // A line of each row. Not a pointer: the rows of a packed batch may end before these do.
  struct Column {
    uintptr_t line;
    int64_t stride;  // in bytes
  };
  Column columns_[tuning::kPrefetchColumns];
  const int64_t rows_;
  int64_t left_ = 0;
  int count_ = 0, next_ = 0;
};

// Are `count` rows of so many units worth a PrefetchList?
inline bool prefetch_pays(int64_t units, int64_t count) {
  return units >= tuning::kPrefetchUnits && count > 1;
}

// Fetches what other threads have just written: all lines at once, because the product that reads them would
// wait for each in turn.
template <class S>
void fetch_written(const S* from, int64_t n) {
  constexpr int64_t kLine = tuning::kLine / sizeof(S), kMost = tuning::kFetchedBytes / sizeof(S);
  for (int64_t i = 0; i < std::min(n, kMost); i += kLine) __builtin_prefetch(from + i);
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
