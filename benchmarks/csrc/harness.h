#pragma once

// Times functions and prints a line for each.

#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

namespace benchmarks {

// Seconds, of the world or of this thread alone. What other programs do is not in the time of a thread.
enum class Clock { world, thread };

inline double now(Clock clock) {
  timespec time;
  clock_gettime(clock == Clock::thread ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// Keeps the compiler from leaving out what computes `value`.
template <class T>
inline void keep(const T& value) {
  asm volatile("" : : "g"(&value) : "memory");
}

class Runner {
 public:
  // seconds: of each benchmark. filter: runs only benchmarks whose names contain it.
  Runner(double seconds, std::string filter) : seconds_(seconds), filter_(std::move(filter)) {
    std::printf("%-44s %14s %18s %8s\n", "benchmark", "time", "rate", "of peak");
  }

  bool wants(const std::string& name) const { return name.find(filter_) != std::string::npos; }

  // Seconds of one call: the fastest of many samples, because noise only makes a sample slower.
  template <class F>
  double time(const F& call, Clock clock = Clock::thread) const {
    call();
    int64_t repeats = 1;
    double sample = sample_of(call, repeats, clock);
    while (sample < kSampleSeconds && sample < seconds_) {
      repeats *= 2;
      sample = sample_of(call, repeats, clock);
    }
    double best = sample;
    // Several threads are seldom undisturbed.
    const double seconds = clock == Clock::world ? 10 * seconds_ : seconds_;
    for (const double end = now(Clock::world) + seconds; now(Clock::world) < end;) {
      best = std::min(best, sample_of(call, repeats, clock));
    }
    return best / static_cast<double>(repeats);
  }

  void print(const std::string& name, double seconds) const {
    std::printf("%-44s %11.2f ns\n", name.c_str(), seconds * 1e9);
    std::fflush(stdout);
  }
  // flops: of one call. peak: FLOP/s.
  void print(const std::string& name, double seconds, double flops, double peak) const {
    const double rate = flops / seconds;
    std::printf("%-44s %11.2f us %11.1f GFLOP/s %7.0f%%\n", name.c_str(), seconds * 1e6, rate * 1e-9,
                100 * rate / peak);
    std::fflush(stdout);
  }

 private:
  static constexpr double kSampleSeconds = 1e-3;

  template <class F>
  static double sample_of(const F& call, int64_t repeats, Clock clock) {
    const double start = now(clock);
    for (int64_t i = 0; i < repeats; ++i) call();
    return now(clock) - start;
  }

  const double seconds_;
  const std::string filter_;
};

}  // namespace benchmarks
