"""Micro-benchmarks of the CPU kernels, in C++: `python -m benchmarks.csrc`."""
