"""Checks the machine code of the persistent CUDA kernels by the rules of the table RULES.

    python tools/check_cuda_kernels.py [OBJECT ...]

It reads the given objects, or all objects below build/, and prints each rule that a kernel breaks. It needs
cuobjdump, which is part of the CUDA toolkit and of the Triton in a CUDA build of torch.

There is no rule for the number of registers. A thread in a block of 256 may have all 255 registers that it
can address. A kernel that needs more uses the stack, and there is a rule for that.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# In the order of csrc/cuda/plan.h.
MATHS = ("fp64", "ieee", "tf32", "fp16", "bf16")
KINDS = ("stepwise", "grid", "cluster")
CELLS = ("Lstm", "Gru", "Rnn<kRnnTanh, Tanh>", "Rnn<kRnnRelu, Relu>")
KERNELS = list(product(("Forward", "Backward"), CELLS, MATHS[1:], KINDS[1:]))  # of each architecture

# What a lane keeps of the weights, in words (csrc/cuda/persistent/tiling.h); a matrix instruction takes 4.
WEIGHT_WORDS = 128
BATCH_TILES = {"grid": 2, "cluster": 1}  # of 8 sequences, by kind of plan
MATRIX = {"bf16": "HMMA.16816.F32.BF16", "fp16": "HMMA.16816.F32", "tf32": "HMMA.1688.F32.TF32"}

INSTRUCTION = re.compile(
    r"\s*/\*(?P<at>[0-9a-f]{4,})\*/\s+(?P<guard>@!?U?P\w+\s+)?(?P<name>[A-Z][\w.]*)\s*(?P<operands>[^;]*);"
)
NAME = re.compile(
    r"persistent_recurrence<fastrnn::cuda::(?P<role>Forward|Backward)Role<"
    r"fastrnn::cells::(?P<cell>\w+(?:<[\w:, ]+>)?), "
    r"\(fastrnn::cuda::Math\)(?P<math>\d)>, \(fastrnn::cuda::Kind\)(?P<kind>\d)>"
)
REGISTER = re.compile(r"[-|]*R(\d+)\b")
ZERO = re.compile(r"[-|]*S?RZ\b")
MOVES = ("MOV", "IMAD.MOV", "CS2R")
# By kind of plan: the first of the instructions that poll for the other blocks, and those after which the
# other blocks need not wait any longer.
POLLS = {"grid": "LDG.E.STRONG.GPU", "cluster": "SYNCS.PHASECHK.TRANS64.TRYWAIT"}
SENDS = {"grid": "RED", "cluster": "STAS"}


@dataclass
class Instruction:
    at: int
    name: str
    operands: list[str]
    guarded: bool  # has a predicate

    def registers(self, operand: int, count: int = 1) -> range:
        """The registers of an operand: `count` in a row, from the one that it names."""
        found = REGISTER.match(self.operands[operand]) if operand < len(self.operands) else None
        return range(int(found[1]), int(found[1]) + count) if found else range(0)

    @property
    def written(self) -> range:
        if self.name.startswith(("ST", "RED", "BRA", "BAR", "EXIT")):
            return range(0)
        load = self.name.startswith("LD")
        if self.name.startswith("HMMA") or load and (".128" in self.name or "M88.4" in self.name):
            return self.registers(0, 4)
        pair = load and (".64" in self.name or "M88.2" in self.name) or "WIDE" in self.name
        return self.registers(0, 2 if pair or self.name == "CS2R" else 1)

    @cached_property
    def read(self) -> set[int]:
        """The registers that the operands name, single or in pairs."""
        sources = self.operands if self.name.startswith(("ST", "RED")) else self.operands[1:]
        found = re.findall(r"\bR(\d+)(\.64)?", " ".join(sources))
        return {int(first) + second for first, pair in found for second in range(1 + bool(pair))}

    @property
    def target(self) -> int | None:
        """The address that a branch goes to."""
        found = re.search(r"0x([0-9a-f]+)", self.operands[-1]) if self.name.startswith("BRA") else None
        return int(found[1], 16) if found else None


@dataclass
class Kernel:
    arch: str
    role: str
    cell: str
    math: str
    kind: str
    stack: int = 0
    code: list[Instruction] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.arch} {self.role.lower()} {self.cell} {self.math} {self.kind}"

    @property
    def key(self) -> tuple:
        return self.role, self.cell, self.math, self.kind

    @property
    def empty(self) -> bool:
        """Clusters are not for devices before 9.0."""
        return self.kind == "cluster" and int(re.search(r"\d+", self.arch)[0]) < 90

    @cached_property
    def time_loop(self) -> list[Instruction]:
        """The longest stretch from the target of a branch back to the branch that has a product in it."""
        addresses = [i.at for i in self.code]
        loops = (
            self.code[bisect_left(addresses, i.target) : k + 1]
            for k, i in enumerate(self.code)
            if i.target is not None and i.target <= i.at
        )
        return max((loop for loop in loops if self.products(loop)), key=len, default=[])

    @cached_property
    def before_wait(self) -> list[Instruction]:
        """The part of the time loop that does not depend on the first poll for the other blocks."""
        polled = False
        for k, instruction in enumerate(self.time_loop):
            polled |= instruction.name.startswith(POLLS[self.kind])
            if polled and instruction.name == "BRA":
                return self.time_loop[:k]
        return []

    @cached_property
    def others_wait(self) -> list[Instruction]:
        """The part of the time loop from the first poll to the last send: the other blocks wait for it."""
        after = self.time_loop[len(self.before_wait) :]
        sends = [k for k, i in enumerate(after) if i.name.startswith(SENDS[self.kind])]
        return after[: max(sends, default=-1) + 1]

    @cached_property
    def others_compute(self) -> list[Instruction]:
        """The rest of the time loop: from the last send on, and of the next iteration what is before the
        poll."""
        return self.time_loop[len(self.before_wait) + len(self.others_wait) :] + self.before_wait

    def products(self, code: Iterable[Instruction]) -> list[Instruction]:
        """The instructions that multiply weights: matrix instructions, or multiply-adds in full float32."""
        name = MATRIX.get(self.math, "FFMA")
        return [i for i in code if (i.name == name if self.math in MATRIX else i.name.startswith(name))]


# ---- the rules: each returns what is wrong with a kernel, or None ----


def uses_local_memory(kernel: Kernel) -> str | None:
    local = sum(i.name.startswith(("LDL", "STL")) for i in kernel.code)
    return f"{kernel.stack} bytes of stack, {local} instructions" if kernel.stack or local else None


def multiply_adds(kernel: Kernel) -> int:
    """Of each of the weights with 8 sequences. Where a unit has three rows, a fourth of the weights are
    padding."""
    return 8 * WEIGHT_WORDS * (3 if kernel.cell == "Gru" and kernel.role == "Forward" else 4) // 4


def wrong_products(kernel: Kernel) -> str | None:
    """The time loop has too few instructions of the math, or the kernel has instructions of another math."""
    expected = (
        WEIGHT_WORDS // 4 * BATCH_TILES[kernel.kind] if kernel.math in MATRIX else multiply_adds(kernel)
    )
    found = len(kernel.products(kernel.time_loop))
    others = {i.name for i in kernel.code if i.name.startswith("HMMA")} - {MATRIX.get(kernel.math)}
    if found < expected:
        return f"{found} of at least {expected} {MATRIX.get(kernel.math, 'FFMA')} in the time loop"
    return f"also {', '.join(sorted(others))}" if others else None


def loads_weights_again(kernel: Kernel) -> str | None:
    """A product in the time loop has no operand from before the loop, not even through other registers.

    In a matrix instruction the second operand must be from before; in a multiply-add either factor. The loop
    also has multiply-adds for other purposes, so only the expected number must follow this rule.
    """
    loop = kernel.time_loop
    writers: dict[int, list[int]] = {}
    for at, instruction in enumerate(loop):
        for register in instruction.written:
            writers.setdefault(register, []).append(at)

    def is_kept(register: int, at: int, moves: int = 4) -> bool:
        places = writers.get(register)
        if not places:
            return True
        # The last writer before; if there is none, the last writer of the previous iteration.
        writer = loop[places[bisect_left(places, at) - 1]]
        sources = [o for o in writer.operands[1:] if REGISTER.match(o) or ZERO.match(o)]
        if not writer.name.startswith(MOVES) or not sources or moves == 0:
            return False
        if ZERO.match(sources[-1]):
            return True
        return is_kept(int(REGISTER.match(sources[-1])[1]), places[bisect_left(places, at) - 1], moves - 1)

    def factor_is_kept(at: int, operand: int, count: int) -> bool:
        instruction = loop[at]
        if ZERO.match(instruction.operands[operand]):
            return True
        registers = instruction.registers(operand, count)
        return bool(registers) and all(is_kept(register, at) for register in registers)

    products = {id(i) for i in kernel.products(loop)}
    operands, count = ((1,), 4) if kernel.math in MATRIX else ((1, 2), 1)
    kept = sum(
        any(factor_is_kept(at, operand, count) for operand in operands)
        for at, i in enumerate(loop)
        if id(i) in products
    )
    expected = len(products) if kernel.math in MATRIX else multiply_adds(kernel)
    return f"only {kept} of {expected} products have a factor from before it" if kept < expected else None


def find_use(registers: Iterable[int], code: list[Instruction], start: int) -> Instruction | None:
    """An instruction that reads one of the registers, on a path from `start` that does not write it first."""
    registers = set(registers)
    places = {i.at: k for k, i in enumerate(code)}
    ways, seen = [start], set()
    while ways:
        k = ways.pop()
        if k in seen or k >= len(code):
            continue
        seen.add(k)
        instruction = code[k]
        if registers & instruction.read:
            return instruction
        if registers & set(instruction.written) and not instruction.guarded:
            continue
        if instruction.target in places:
            ways.append(places[instruction.target])
        if instruction.target is None or instruction.guarded:
            ways.append(k + 1)
    return None


def find_used_load(code: list[Instruction]) -> tuple[Instruction, Instruction] | None:
    """A load from global memory that `code` uses itself, and where. What other blocks wrote does not
    count."""
    for at, load in enumerate(code):
        if load.name.startswith("LDG") and "STRONG" not in load.name:
            if later := find_use(load.written, code, at + 1):
                return load, later
    return None


def waits_for_loads(kernel: Kernel) -> str | None:
    """The inputs of the next step are not loaded while the other blocks compute, or something waits for
    them."""
    if used := find_used_load(kernel.others_compute):
        load, later = used
        return f"{load.name} at {load.at:#x} is used at {later.at:#x}, before the wait"
    loads = any(i.name.startswith("LDG") for i in kernel.others_compute)
    return None if loads or not kernel.time_loop else "no loads between the last send and the wait"


def makes_others_wait(kernel: Kernel) -> str | None:
    """Between the wait and the last send an instruction waits for a load. In a grid some must: they need the
    place of what the other blocks wrote."""
    if kernel.kind == "cluster" and (used := find_used_load(kernel.others_wait)):
        load, later = used
        return f"{load.name} at {load.at:#x} is used at {later.at:#x}, before the other blocks can go on"
    return None


def empties_the_cache(kernel: Kernel) -> str | None:
    """A cluster empties the first-level cache. It need not: its blocks meet in shared memory."""
    emptied = [i for i in kernel.time_loop if i.name.startswith("CCTL")]
    return f"{emptied[0].name} at {emptied[0].at:#x}" if kernel.kind == "cluster" and emptied else None


RULES: dict[str, Callable[[Kernel], str | None]] = {
    "no stack, no local memory": uses_local_memory,
    "products by the expected instructions": wrong_products,
    "weights are loaded before the time loop": loads_weights_again,
    "inputs are loaded while the other blocks compute": waits_for_loads,
    "the other blocks wait for no load": makes_others_wait,
    "clusters leave the first-level cache alone": empties_the_cache,
}


# ---- reading ----


def find_cuobjdump() -> str | None:
    triton = importlib.util.find_spec("triton")
    places = [os.environ["PATH"], "/usr/local/cuda/bin"]
    if triton:
        places.append(str(Path(triton.origin).parent / "backends/nvidia/bin"))
    return shutil.which("cuobjdump", path=os.pathsep.join(places))


def run(*arguments, **options) -> str:
    return subprocess.run(arguments, check=True, capture_output=True, text=True, **options).stdout


def read_kernels(cuobjdump: str, path: Path) -> Iterator[Kernel]:
    """The persistent kernels in an object."""
    stacks, arch, name = {}, "", ""
    for line in run(cuobjdump, "--dump-resource-usage", path).splitlines():
        arch = line.removeprefix("arch = ") if line.startswith("arch = ") else arch
        if found := re.match(r"\s*Function (\S+):", line):
            name = found[1]
        if found := re.search(r"\bSTACK:(\d+) .*\bLOCAL:(\d+)", line):
            stacks[arch, name] = int(found[1]) + int(found[2])
    names = {name for _, name in stacks}
    readable = dict(zip(names, run("c++filt", input="\n".join(names)).splitlines(), strict=True))
    kernel = None
    for line in run(cuobjdump, "--dump-sass", path).splitlines():
        arch = line.removeprefix("arch = ") if line.startswith("arch = ") else arch
        if found := re.match(r"\s*Function : (\S+)", line):
            if kernel:
                yield kernel
            kernel = name_kernel(arch, readable[found[1]])
            if kernel:
                kernel.stack = stacks[arch, found[1]]
        elif kernel and (found := INSTRUCTION.match(line)):
            operands = [operand.strip() for operand in found["operands"].split(",")]
            guarded = bool(found["guard"])
            kernel.code.append(Instruction(int(found["at"], 16), found["name"], operands, guarded))
    if kernel:
        yield kernel


def name_kernel(arch: str, name: str) -> Kernel | None:
    found = NAME.search(name)
    if not found:
        return None
    cell = re.sub(r"fastrnn::cells::", "", found["cell"])
    return Kernel(arch, found["role"], cell, MATHS[int(found["math"])], KINDS[int(found["kind"])])


def check(cuobjdump: str, path: Path) -> tuple[set[tuple], list[str]]:
    """The architecture and key of each kernel in an object, and the complaints."""
    seen, complaints = set(), []
    for kernel in read_kernels(cuobjdump, path):
        seen.add((kernel.arch, *kernel.key))
        for rule, complaint in RULES.items():
            if not kernel.empty and (what := complaint(kernel)):
                complaints.append(f"{kernel}: {rule}: {what}")
    return seen, complaints


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python tools/check_cuda_kernels.py", description=__doc__.split("\n")[0]
    )
    parser.add_argument("objects", nargs="*", type=Path, help="default: all below build/")
    objects = parser.parse_args().objects or sorted((ROOT / "build").glob("**/persistent.cu.o"))
    cuobjdump = find_cuobjdump()
    if not objects or not cuobjdump:
        missing = "cuobjdump is not here" if objects else "no objects of persistent.cu below build/"
        sys.exit(f"error: {missing}: build fastrnn with a CUDA build of torch, and run this with its Python")
    with ProcessPoolExecutor() as pool:
        found = list(pool.map(partial(check, cuobjdump), objects))
    seen = set().union(*(keys for keys, _ in found))
    complaints = [complaint for _, of_object in found for complaint in of_object]
    archs = sorted({arch for arch, *_ in seen})
    complaints += [f"{arch}: missing: {key}" for arch in archs for key in KERNELS if (arch, *key) not in seen]
    print("\n".join(complaints) or f"{len(seen)} kernels for {', '.join(archs)} follow the rules")
    return int(bool(complaints) or not seen)


if __name__ == "__main__":
    sys.exit(main())
