"""What the planner, the launch and the exporter ask of a kernel family: a module with these names.

A family's module is its host side; its device side is the .cuh of the same name. Tensors reach a
kernel in one order, whatever the family:

    forward          x, w, b or None, y, workspace or None
    input gradient   dy, w, dx, workspace or None
    weight gradient  dy, x, dw, db or None, workspace or None
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from convsmith.kernels.source import KernelSource
from convsmith.roofline import Ceilings
from convsmith.spec import ConvSpec, Direction


class Configuration(Protocol):
    """How a family cuts one ConvSpec into blocks; each family has its own, a frozen dataclass."""

    @property
    def workspace_bytes(self) -> int:
        """Memory that the kernel takes beside its result."""


class Family(Protocol):
    """A kernel family's module."""

    NAME: str
    LEAST_CAPABILITY: tuple[int, int]
    MOST_CAPABILITY: tuple[int, int]
    SIMULATION: int  # rank among the families that the simulator may take, the quickest first

    def obstacle(self, spec: ConvSpec) -> str | None:
        """Why the family cannot compute ``spec``, in words that follow "it cannot: "; or None."""

    def configure(self, spec: ConvSpec, multiprocessors: int) -> Any:
        """The family's Configuration of ``spec`` on a GPU of ``multiprocessors``."""

    def alternatives(self, spec: ConvSpec, multiprocessors: int) -> Sequence[Any]:
        """Configurations worth measuring; the first one is what ``configure`` returns."""

    def predicted_ms(
        self, spec: ConvSpec, configuration: Any, ceilings: Ceilings, multiprocessors: int
    ) -> float:
        """The time to expect of it, in milliseconds."""

    def reason(self, configuration: Any) -> str:
        """How that time comes about, in a few words."""

    def source(self, spec: ConvSpec, configuration: Any) -> KernelSource:
        """The kernel that runs ``spec``."""

    def template_arguments(self, spec: ConvSpec, configuration: Any) -> tuple[str, ...]:
        """What ``Specialisation`` of the family's .cuh is instantiated with."""

    def problem(self, spec: ConvSpec, configuration: Any) -> bytes:
        """What the kernel is told of ``spec`` at run time."""


def places_written(direction: Direction) -> frozenset[int]:
    """Places of the tensors that a kernel writes, in the order above."""
    return frozenset(
        {Direction.FORWARD: {3, 4}, Direction.GRAD_INPUT: {2, 3}}.get(direction, {2, 3, 4})
    )
