"""Which rows are measured: a selection, and those that a complete record holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from convsmith.bench.record import RowKey
from convsmith.bench.suites import DIRECTIONS, DTYPE, PRECISIONS, SUITES, Layer, Layout
from convsmith.errors import ConvSmithError
from convsmith.spec import Direction, Precision


@dataclass(frozen=True)
class Selection:
    """Rows of a suite: all combinations of these."""

    suite: str = "core"
    layers: tuple[str, ...] = ()  # every layer of the suite where empty
    directions: tuple[Direction, ...] = DIRECTIONS
    precisions: tuple[Precision, ...] = PRECISIONS
    layouts: tuple[Layout, ...] = (Layout.NCHW,)

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise ConvSmithError(f"no suite {self.suite!r}; there is {', '.join(SUITES)}")
        known = [layer.name for layer in SUITES[self.suite]]
        unknown = [name for name in self.layers if name not in known]
        if unknown:
            raise ConvSmithError(
                f"suite {self.suite} has no layer {', '.join(unknown)}; it has {', '.join(known)}"
            )
        require_known(self.precisions)

    def groups(self) -> Iterator[tuple[Layer, Direction, Layout]]:
        """What is measured together; each in all the selection's precisions."""
        for layer in SUITES[self.suite]:
            if not self.layers or layer.name in self.layers:
                for direction in self.directions:
                    for layout in self.layouts:
                        yield layer, direction, layout

    def row_keys(self) -> list[RowKey]:
        """The keys of all its rows."""
        return [
            self.key(layer, direction, precision, layout)
            for layer, direction, layout in self.groups()
            for precision in self.precisions
        ]

    def key(
        self, layer: Layer, direction: Direction, precision: Precision, layout: Layout
    ) -> RowKey:
        """The key of one row."""
        return (self.suite, layer.name, direction.value, precision.value, layout.value)


def require_known(precisions: Sequence[Precision]) -> None:
    """Refuse a class that nothing is measured in.

    Raises:
        ConvSmithError: there is one.
    """
    unknown = [one.value for one in precisions if one not in DTYPE]
    if unknown:
        known = ", ".join(one.value for one in DTYPE)
        raise ConvSmithError(f"nothing is measured in {', '.join(unknown)}, only in {known}")


# What a complete record holds, in the order in which it is measured. Of `depthwise` float32 alone:
# such narrow groups run on the float32 units in the TF32 class too.
RECORDED = (
    Selection("core"),
    Selection("depthwise", precisions=(Precision.FLOAT32,)),
    Selection("dense"),
    Selection(
        "core",
        layers=("kb55", "kb63", "kb82", "convnext_dw7"),
        precisions=(Precision.FLOAT16, Precision.BFLOAT16),
    ),
)


def narrowed(
    selections: Sequence[Selection],
    layers: Sequence[str],
    directions: Sequence[Direction],
    precisions: Sequence[Precision],
) -> list[Selection]:
    """What ``selections`` have of these layers (all where empty), directions and precisions.

    Raises:
        ConvSmithError: no suite of theirs has such a layer, or nothing is left.
    """
    suites = {one.suite: SUITES[one.suite] for one in selections}
    known = [layer.name for suite in suites.values() for layer in suite]
    unknown = [name for name in layers if name not in known]
    if unknown:
        raise ConvSmithError(
            f"no layer {', '.join(unknown)} in {', '.join(suites)}; there is {', '.join(known)}"
        )
    narrow = []
    for one in selections:
        own = one.layers or [layer.name for layer in SUITES[one.suite]]
        parts = (
            tuple(name for name in own if not layers or name in layers),
            tuple(direction for direction in one.directions if direction in directions),
            tuple(precision for precision in one.precisions if precision in precisions),
        )
        if all(parts):
            narrow.append(replace(one, layers=parts[0], directions=parts[1], precisions=parts[2]))
    if not narrow:
        raise ConvSmithError("a record holds nothing of these layers, directions and precisions")
    return narrow
