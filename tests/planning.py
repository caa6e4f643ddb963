"""What is planned in tests, and for which GPU."""

from __future__ import annotations

import torch

from convsmith.spec import ConvSpec, Direction, Precision, contiguous_strides, output_extent

H200 = torch.device("cuda", 0)


def spec(
    shape: tuple[int, int, int, int],
    filters: int,
    kernel: tuple[int, int],
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    direction: Direction = Direction.FORWARD,
    precision: Precision = Precision.FLOAT32,
    dtype: torch.dtype = torch.float32,
) -> ConvSpec:
    batch, channels, height, width = shape
    output = (
        batch,
        filters,
        output_extent(height, kernel[0], stride, padding, dilation),
        output_extent(width, kernel[1], stride, padding, dilation),
    )
    return ConvSpec(
        direction,
        batch,
        channels,
        height,
        width,
        filters,
        kernel,
        (stride, stride),
        (padding, padding),
        (dilation, dilation),
        groups,
        dtype,
        precision,
        False,
        contiguous_strides(shape),
        contiguous_strides((filters, channels // groups, *kernel)),
        contiguous_strides(output),
    )


class StubFamily:
    """A family that only the planner can use, which says what it is told to.

    Its alternatives take the times ``others``, each as its configuration says.
    """

    def __init__(
        self,
        name: str,
        ms: float,
        *others: float,
        obstacle: str | None = None,
        least_capability: tuple[int, int] = (7, 0),
    ) -> None:
        self.NAME, self.LEAST_CAPABILITY = name, least_capability
        self.MOST_CAPABILITY, self.SIMULATION = (99, 0), 0
        self._obstacle = obstacle
        self._ms = {f"{name} on 132": ms}
        self._ms.update({f"{name} on 132 in way {way}": one for way, one in enumerate(others, 2)})

    def obstacle(self, spec: ConvSpec) -> str | None:
        return self._obstacle

    def configure(self, spec: ConvSpec, multiprocessors: int) -> str:
        return f"{self.NAME} on {multiprocessors}"

    def alternatives(self, spec: ConvSpec, multiprocessors: int) -> list[str]:
        assert multiprocessors == 132
        return list(self._ms)

    def predicted_ms(self, spec: ConvSpec, configuration: str, *ceilings_and_more: object) -> float:
        return self._ms[configuration]

    def reason(self, configuration: str) -> str:
        return f"as {configuration}"
