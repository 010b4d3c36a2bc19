"""Kernels compiled for GPUs that are not here: what the compiler made of them."""

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ARCHITECTURES = (80, 89, 90)


@dataclass(frozen=True)
class Compiled:
    """A kernel as compiled for one architecture."""

    ptx: str
    sass: str
    registers: int
    shared: int
    """Bytes of shared memory of a program."""

    @cached_property
    def instructions(self) -> list[str]:
        """All machine instructions in order, without predicates."""
        return re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;", self.sass, re.MULTILINE)

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each instruction occurs, by its name without modifiers."""
        return Counter(name_of(instruction) for instruction in self.instructions)

    @property
    def spills(self) -> int:
        """Loads and stores of registers that did not suffice."""
        return self.counts["LDL"] + self.counts["STL"]

    @property
    def products(self) -> set[str]:
        """Kinds of matrix instructions on bytes in the PTX, such as `mma.sync` and `wgmma.mma_async`."""
        return {kind for kind, rest in re.findall(r"(mma\.sync|wgmma\.mma_async)([\w.:]*)", self.ptx) if ".s8" in rest}

    def loops(self) -> list[list[str]]:
        """The instructions of each loop, the shortest loop first."""
        found = []
        for at, instruction in enumerate(self.instructions):
            target = re.search(r"\bBRA.*?(\.L_x_\d+)", instruction)
            begin = self._labels.get(target[1]) if target else None
            if begin is not None and begin <= at:
                found.append(self.instructions[begin : at + 1])
        return sorted(found, key=len)

    @property
    def has_product_loop(self) -> bool:
        """Whether a loop has a matrix instruction on integers."""
        return any(name_of(each) in ("IMMA", "IGMMA") for loop in self.loops() for each in loop)

    def product_loop(self) -> list[str]:
        """The shortest loop with a matrix instruction on integers: that over tiles.

        Raises:
            ValueError: there is none.
        """
        for loop in self.loops():
            if any(name_of(instruction) in ("IMMA", "IGMMA") for instruction in loop):
                return loop
        raise ValueError("no loop has a matrix instruction on integers")

    @cached_property
    def _labels(self) -> dict[str, int]:
        """For each label the number of the instruction after it."""
        labels, count = {}, 0
        for line in self.sass.splitlines():
            if label := re.match(r"\s*(\.L_x_\d+):", line):
                labels[label[1]] = count
            elif re.match(r"\s*/\*[0-9a-f]+\*/\s+\S", line):
                count += 1
        return labels


FOUND: list[tuple[str, str, int, Compiled]] = []
"""The test, kernel and architecture of all that was compiled in this process."""


def name_of(instruction: str) -> str:
    """The name of an instruction without modifiers and operands, such as IMMA."""
    return instruction.split()[0].partition(".")[0]


def compiled(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    architecture: int,
    *,
    warps: int = 4,
    stages: int = 3,
    multiples_of_16: Sequence[str] = (),
) -> Compiled:
    """Compile a kernel as ROUNDED says, for one of ARCHITECTURES.

    Args:
        types: of the arguments, such as `*i8` and `i32`; pointers are multiples of 16 bytes.
        constants: the rest of the arguments: constexprs, and None for tables that are not there.
        multiples_of_16: integers that are; Triton finds this out at each launch.
    """
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    hints = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(names)
        if signature[name].startswith("*") or name in multiples_of_16
    }
    values = {name: constants[name] for name in names if name not in types}
    binary = triton.compile(
        ASTSource(kernel, signature, values, hints),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False},
    )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(binary.asm["cubin"])
        sass = _output(TOOLS / "nvdisasm", "-c", cubin)
        usage = _output(TOOLS / "cuobjdump", "-res-usage", cubin)
    found = Compiled(binary.asm["ptx"], sass, int(re.findall(r"REG:(\d+)", usage)[-1]), binary.metadata.shared)
    FOUND.append((os.environ["PYTEST_CURRENT_TEST"], kernel.__name__, architecture, found))
    return found


def _output(*command: Path | str) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout
