// Micro-benchmarks of the kernels for one instruction set: python -m benchmarks.csrc builds and runs them.
//
//   main SECONDS [FILTER]: so long for each benchmark whose name contains FILTER

#include <cstdlib>

#include "cells.h"
#include "harness.h"
#include "products.h"
#include "threads.h"

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: %s SECONDS [FILTER]\n", argv[0]);
    return 2;
  }
  const benchmarks::Runner runner(std::atof(argv[1]), argc == 3 ? argv[2] : "");
  benchmarks::run_products<float>(runner);
  benchmarks::run_products<fastrnn::bf16>(runner);
  benchmarks::run_products<double>(runner);
  benchmarks::run_cells<float>(runner);
  benchmarks::run_cells<double>(runner);
  benchmarks::run_threads(runner);
}
