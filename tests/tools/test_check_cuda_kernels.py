"""tools/check_cuda_kernels.py: a kernel that follows its rules passes, and each rule finds the kernel that
breaks it. The kernels are compiled here; no GPU is needed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))  # last: fastrnn is the one that is installed

from tools.check_cuda_kernels import RULES, check, find_cuobjdump  # noqa: E402

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not here"),
    pytest.mark.skipif(find_cuobjdump() is None, reason="cuobjdump is not here"),
]

# As persistent.cu names them: the loop multiplies 128 words of weights that each lane keeps. It waits,
# multiplies, sends and loads.
SOURCE = """
namespace fastrnn::cells { struct Lstm {}; }
namespace fastrnn::cuda {
enum class Math { fp64, ieee, tf32, fp16, bf16 };
enum class Kind { stepwise, grid, cluster };
template <class Cell, Math m> struct ForwardRole {};

#ifndef TYPE
#define TYPE "bf16"
#endif
#ifndef SCOPE
#define SCOPE ""
#endif
__device__ void wait(unsigned barrier, unsigned parity) {
#if __CUDA_ARCH__ >= 900
  for (unsigned passed = 0; !passed;) {
    asm volatile("{\\n.reg .pred p;\\n"
                 "mbarrier.try_wait.parity" SCOPE ".shared::cta.b64 p, [%1], %2;\\n"
                 "selp.u32 %0, 1, 0, p;\\n}" : "=r"(passed) : "r"(barrier), "r"(parity) : "memory");
  }
#endif
}
__device__ void send(unsigned to, unsigned word, unsigned barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
               :: "r"(to), "r"(word), "r"(barrier) : "memory");
#endif
}
__device__ void mma(float* sum, const unsigned* w, const unsigned* x) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, "
               "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(x[0]), "r"(x[1]));
}

namespace persistent {
template <class Role, Kind kind>
__global__ void __launch_bounds__(256, 1)
    persistent_recurrence(const unsigned* weights, const unsigned* x, float* y, int steps, int where) {
  unsigned w[PRODUCTS][4];
  const auto load = [&](int i, int k) {
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(w[i][k]) : "l"(weights + (4 * i + k) * 256 + threadIdx.x));
  };
#pragma unroll
  for (int i = 0; i < PRODUCTS; ++i)
    for (int k = 0; k < 4; ++k) load(i, k);
#ifdef STACK
  float local[64] = {};
#endif
  unsigned input = x[0];
#pragma unroll 1
  for (int t = 0; t < steps; ++t) {
    float sum[4] = {};
#ifdef RELOAD
    load(7, 2);
#endif
#ifdef CONVERT
    asm volatile("not.b32 %0, %0;" : "+r"(input));
#endif
    wait(where, t % 2);
#ifdef LATE
    unsigned bias;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(bias) : "l"(x + steps));
    input += bias;
#endif
    const unsigned h[2] = {input, input + 1};
#pragma unroll
    for (int i = 0; i < PRODUCTS; ++i) mma(sum, w[i], h);
#ifdef STACK
    local[(where + t) % 64] += sum[0];
    sum[1] += local[where];
#endif
    send(where + 8, sum[0], where);
    __syncthreads();  // the compiler leaves the load where it is
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(input) : "l"(x + t + 1));
    y[4 * t + threadIdx.x] = sum[0] + sum[1] + sum[2] + sum[3];
  }
}
template __global__ void persistent_recurrence<ForwardRole<cells::Lstm, Math::bf16>, Kind::cluster>(
    const unsigned*, const unsigned*, float*, int, int);
}  // namespace persistent
}  // namespace fastrnn::cuda
"""
STACK, PRODUCTS, WEIGHTS, WAITS, LATE, CACHE = RULES


def find_complaints(folder, arch, *options):
    source, target = folder / "kernel.cu", folder / "kernel.o"
    source.write_text(SOURCE)
    if not any("PRODUCTS" in option for option in options):
        options += ("-DPRODUCTS=32",)
    command = ["nvcc", "-std=c++20", f"-arch={arch}", *options, "-c", source, "-o", target]
    subprocess.run(command, check=True)
    seen, complaints = check(find_cuobjdump(), target)
    assert seen == {(arch, "Forward", "Lstm", "bf16", "cluster")}
    return complaints


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100"])
def test_good_kernel(tmp_path, arch):
    assert find_complaints(tmp_path, arch) == []


def test_clusters_are_not_for_older_devices(tmp_path):
    assert find_complaints(tmp_path, "sm_80", "-DSTACK") == []


@pytest.mark.parametrize(
    "options, rule, words",
    [
        (["-DSTACK"], STACK, "bytes of stack"),
        (["-DPRODUCTS=31"], PRODUCTS, "31 of at least 32 HMMA.16816.F32.BF16"),
        (['-DTYPE="f16"'], PRODUCTS, "0 of at least 32 HMMA.16816.F32.BF16"),
        (["-DRELOAD"], WEIGHTS, "only 31 of 32 products"),
        (["-DCONVERT"], WAITS, "before the wait"),
        (["-DLATE"], LATE, "LDG.E"),
        (['-DSCOPE=".acquire.cluster"'], CACHE, "CCTL.IVALL"),
    ],
    ids=["stack", "too-few", "other-type", "reload", "convert", "late", "scope"],
)
def test_planted_fault(tmp_path, options, rule, words):
    (complaint,) = find_complaints(tmp_path, "sm_90a", *options)
    assert complaint.startswith(f"sm_90a forward Lstm bf16 cluster: {rule}: ") and words in complaint
