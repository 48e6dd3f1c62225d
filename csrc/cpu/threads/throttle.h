#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/tuning.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// How many threads a caller uses while some of them get no core, because there are more threads than cores or
// other programs use them. A short call then ends only when every thread has had its turn, even if it only finds
// that the work is done. That takes as long as tens of calls.
//
// A team that idles for longer than it works would be as quick with half of its threads. So a caller takes
// half when that has cost kPatience, and tries more again after a rest. If a try fails the next rest is twice as
// long, so that tries cost little while nothing changes.
class ThreadThrottle {
 public:
  // Of the `wanted` threads, those to use. clock() gives the time, in nanoseconds as all times here.
  template <class Clock>
  int threads(int wanted, const Clock& clock) {
    if (wanted != wanted_) {
      *this = ThreadThrottle();
      wanted_ = wanted;
    }
    if (halvings_ > 0) {
      const int64_t now = clock();
      if (now >= rest_end_) {
        --halvings_;
        rest_end_ = now + rest_;
      }
    }
    return std::max(1, wanted >> halvings_);
  }

  // Of a call that ended at `now`: how long its threads were idle and how long they worked, together.
  void record(int64_t now, int64_t idle, int64_t worked) {
    lost_ = std::max<int64_t>(0, lost_ + idle - worked);
    if (lost_ <= tuning::kPatience) return;
    lost_ = 0;
    rest_ = now < rest_end_ ? std::min(2 * rest_, tuning::kLongestRest) : tuning::kFirstRest;
    rest_end_ = now + rest_;
    ++halvings_;
  }

 private:
  int wanted_ = 0, halvings_ = 0;
  int64_t lost_ = 0, rest_ = 0, rest_end_ = 0;
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
