"""An exported file's kernels in the simulator: what stands in for load_inline.

The text that an exported file gives to load_inline is a kernel as the simulator takes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from convsmith.kernels.families import FAMILIES
from convsmith.kernels.family import places_written
from convsmith.kernels.source import KernelSource
from convsmith.launch import simulate
from convsmith.spec import Direction

_FAMILY = re.compile(r"^using Specialisation = convsmith::(?P<name>\w+)::", re.MULTILINE)


def simulated_load_inline(
    name: str, cpp_sources: Any, cuda_sources: Sequence[str], **options: Any
) -> SimulatedKernel:
    """``torch.utils.cpp_extension.load_inline`` for the sources of an exported file."""
    return SimulatedKernel(KernelSource(name, "\n".join(cuda_sources)))


class SimulatedKernel:
    """A kernel of an exported file, which runs it on CPU tensors by ``simulate``."""

    def __init__(self, source: KernelSource) -> None:
        match = _FAMILY.search(source.cuda)
        assert match is not None, f"{source.name} is no kernel of an exported file"
        self._source = source
        self._family = FAMILIES[match["name"]]

    def simulate(self, direction: str, problem: bytes, operands: Sequence[Tensor | None]) -> None:
        """Run the kernel of a ``Direction`` on its operands, in the order that families have.

        Raises:
            SimulatorError: the simulator found a fault of the kernel.
        """
        simulate(self._source, problem, operands, places_written(Direction(direction)))
