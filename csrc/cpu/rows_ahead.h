#pragma once

#include <cstdint>

#include "cpu/simd.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// Rows of memory that cells will read or write, fetched into the cache line by line while the tiles of the
// product before them compute. Cells alone wait for memory, and fetching all at once has not helped.
class RowsAhead {
 public:
  explicit RowsAhead(int64_t rows) : rows_(rows) {}

  // The first n numbers of each row; `row` is the distance from one row to the next. The lines are those of the
  // first row: the last number of one that begins elsewhere in its line may be left out.
  template <class S>
  void add(const S* first, int64_t n, int64_t row) {
    constexpr uintptr_t kLine = 64;
    const auto begin = reinterpret_cast<uintptr_t>(first), end = begin + n * sizeof(S);
    for (uintptr_t line = begin - begin % kLine; line < end && count_ < kMostColumns; line += kLine) {
      columns_[count_++] = {line, row * static_cast<int64_t>(sizeof(S))};
      left_ += rows_;
    }
  }

  int64_t left() const { return left_; }  // lines

  FASTRNN_INLINE void fetch() {
    Column& column = columns_[next_];
    __builtin_prefetch(reinterpret_cast<const void*>(column.line));
    column.line += column.row;
    next_ = next_ + 1 == count_ ? 0 : next_ + 1;
    --left_;
  }

 private:
  // The widest panel has four lines a row, five if unaligned, and an LSTM reads six arrays of them.
  static constexpr int kMostColumns = 40;
  // A line of each row. Not a pointer: the rows of a packed batch may end before these do.
  struct Column {
    uintptr_t line;
    int64_t row;
  };
  Column columns_[kMostColumns];
  const int64_t rows_;
  int64_t left_ = 0;
  int count_ = 0, next_ = 0;
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
