"""An exported file's kernels in the simulator: what stands in for load_inline, and the switch.

The text that an exported file gives to load_inline is a kernel as the simulator takes it. What the
simulator must be told besides, how large each operand is and which are written, is in the bytes
that the kernel is told of the problem.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Any

import torch

from convsmith.jit import simulator
from convsmith.jit.simulator import Buffer
from convsmith.kernels import direct
from convsmith.kernels.source import KernelSource
from convsmith.spec import Direction, extent, supported_dtypes

_SPECIALISATION = re.compile(r"^using Specialisation = .*<(?P<arguments>[^<>]*)>;$", re.MULTILINE)


def simulated_load_inline(
    name: str, cpp_sources: Any, cuda_sources: Sequence[str], **options: Any
) -> SimulatedKernel:
    """``torch.utils.cpp_extension.load_inline`` for the sources of an exported file."""
    return SimulatedKernel(KernelSource(name, "\n".join(cuda_sources)))


class SimulatedKernel:
    """A kernel of an exported file; like the compiled module, it has ``launch``."""

    def __init__(self, source: KernelSource) -> None:
        self._source = source
        match = _SPECIALISATION.search(source.cuda)
        assert match is not None, f"{source.name} is no kernel of an exported file"
        direction, element, _ = match["arguments"].split(", ")
        self._direction, self._dtype = _KERNELS[direction, element]

    def launch(self, problem: bytes, stream: int, *addresses: int) -> None:
        """Run the kernel on CPU memory; ``stream`` means nothing here.

        Raises:
            SimulatorError: the simulator found a fault of the kernel.
        """
        has_bias = self._direction is Direction.GRAD_WEIGHT and addresses[3] != 0
        sizes = _operand_bytes(self._direction, self._dtype, problem, has_bias)
        writable = direct.writable(self._direction)
        buffers = [
            Buffer(address, nbytes, place in writable) if address else None
            for place, (address, nbytes) in enumerate(zip(addresses, sizes, strict=True))
        ]
        simulator.run(self._source, problem, buffers)


_KERNELS = {
    direct.template_arguments(direction, dtype, 8)[:2]: (direction, dtype)
    for direction in Direction
    for dtype in supported_dtypes()
}


def _operand_bytes(
    direction: Direction, dtype: torch.dtype, problem: bytes, has_bias: bool
) -> list[int]:
    """Bytes of each operand, in the order of ``run`` in direct.cuh.

    Args:
        direction, dtype: of the kernel.
        problem: what ``direct.pack_problem`` packed.
        has_bias: the weight gradient comes with the bias's.
    """
    groups, batch, channels, height, width, filters, *rest = struct.unpack("30q", problem)
    taps, output_size = rest[0:2], rest[2:4]  # then stride, padding and dilation
    strides, splits = rest[10:22], rest[22]
    shapes = (
        (batch, groups * channels, height, width),
        (groups * filters, channels, *taps),
        (batch, groups * filters, *output_size),
    )
    x, w, y = (
        extent(shape, tuple(strides[4 * place : 4 * place + 4])) * dtype.itemsize
        for place, shape in enumerate(shapes)
    )
    bias = groups * filters * dtype.itemsize
    if direction is Direction.FORWARD:
        return [x, w, bias, y]
    if direction is Direction.GRAD_INPUT:
        return [y, w, x]
    sums = groups * filters * (channels * taps[0] * taps[1] + has_bias)
    return [y, x, w, bias, splits * sums * max(4, dtype.itemsize)]
