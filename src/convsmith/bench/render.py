"""Benchmark results for a person: a table, and a progress bar while they are made (rich)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from convsmith.bench.record import Row
from convsmith.bench.run import Observer
from convsmith.planner import TORCH

MIB = 2**20

# Peers beside PyTorch NCHW, by the column of the record: the heading of theirs in the table.
_OTHER_PEERS = {"torch_channels_last_ms": "channels last", "torch_compile_ms": "compile"}

LEGEND = (
    "Times are medians in milliseconds, the 20th and 80th percentile in brackets. 'x' is PyTorch's "
    "time over ours. 'floor' is the share of the time that this GPU needs at least. Errors are "
    "against float64, ours / PyTorch's. Memory is what a call takes beside its result, in MiB. "
    "Channels last: PyTorch with tensors that already lie so; converting them is not counted."
)


# Wide enough for every column, where the output is a file or a pipe.
_FULL_WIDTH = 200


def new_console() -> Console:
    """A console as wide as the terminal; where there is none, as wide as the table."""
    console = Console()
    return console if console.is_terminal else Console(width=_FULL_WIDTH)


def table(rows: Sequence[Row]) -> Table:
    """One line for each row; a wrong result has its fault in the place of its times."""
    others = [name for name in _OTHER_PEERS if any(name in row for row in rows)]
    result = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("layer", "direction", "class", "kernel"):
        result.add_column(heading, overflow="fold")
    for heading in ("ms", "predicted", "floor", "PyTorch", "x"):
        result.add_column(heading, justify="right", overflow="fold")
    for name in others:
        result.add_column(_OTHER_PEERS[name], justify="right", overflow="fold")
        result.add_column("x", justify="right", overflow="fold")
    for heading in ("rms error", "largest error", "extra MiB"):
        result.add_column(heading, justify="right", overflow="fold")
    for row in rows:
        result.add_row(*_cells(row, others))
    return result


def _cells(row: Row, others: Sequence[str]) -> list[Text]:
    title = [row["layer"], row["direction"], _class(row), row["kernel"]]
    if "fault" in row:
        wrong = Text(f"WRONG {row['fault']}", style="bold red", overflow="fold")
        return [*map(Text, title), wrong]
    cells = [
        f"{row['ms']:.4g} ({row['ms_p20']:.4g}-{row['ms_p80']:.4g})",
        "" if row["predicted_ms"] is None else f"{row['predicted_ms']:.4g}",
        f"{row['floor_ms'] / row['ms']:.2f}",
        f"{row['torch_ms']:.4g}",
    ]
    ratios = [Text(cell) for cell in [*title, *cells]] + [_ratio(row["torch_ms"], row["ms"])]
    times: dict[str, object] = dict(row)
    for name in others:
        other = times.get(name)
        if isinstance(other, float):
            ratios += [Text(f"{other:.4g}"), _ratio(other, row["ms"])]
        else:
            ratios += [Text(), Text()]
    return [
        *ratios,
        Text(f"{row['rms_error']:.1e} / {row['torch_rms_error']:.1e}"),
        Text(f"{row['max_error']:.1e} / {row['torch_max_error']:.1e}"),
        Text(f"{row['extra_bytes'] / MIB:.0f} / {row['torch_extra_bytes'] / MIB:.0f}"),
    ]


def _ratio(theirs: float, ours: float) -> Text:
    """How many times faster ours is; what is within two percent of the other's time is neither."""
    ratio = theirs / ours
    style = "green" if ratio > 1.02 else "red" if ratio < 0.98 else ""
    return Text(f"{ratio:.2f}", style=style)


def summary(rows: Sequence[Row]) -> Table:
    """For each suite, how many rows are slower than PyTorch in either layout, and the worst."""
    result = Table(box=None, header_style="bold", pad_edge=False)
    headings = ("suite", "rows", "slower than PyTorch", "worst", "than channels last", "worst")
    for heading in headings:
        result.add_column(heading, overflow="fold")
    timed = [row for row in rows if "fault" not in row]
    for suite in dict.fromkeys(row["suite"] for row in timed):
        own = [row for row in timed if row["suite"] == suite]
        cells = [suite, str(len(own))]
        for peer in ("torch_ms", "torch_channels_last_ms"):
            cells += _slower_than(peer, own)
        result.add_row(*map(Text, cells))
    return result


def _slower_than(peer: str, rows: Sequence[Row]) -> tuple[str, str]:
    """How many of ``rows`` take longer than ``peer`` did, and the one that loses the most."""
    ratios = [
        (times[peer] / row["ms"], row)
        for row in rows
        if peer in (times := cast(dict[str, float], row))
    ]
    if not ratios:
        return "", ""
    slower = [row for ratio, row in ratios if ratio < 1]
    left = sum(row["kernel"] == TORCH for row in slower)
    count = f"{len(slower)} ({left} on PyTorch's kernel)" if left else str(len(slower))
    least, worst = min(ratios, key=lambda pair: pair[0])
    return count, f"{worst['layer']} {worst['direction']} {_class(worst)} {least:.2f}"


def _class(row: Row) -> str:
    """The precision class, and the layout where it is not the usual one."""
    return row["precision"] + ("" if row["layout"] == "nchw" else f" {row['layout']}")


def print_rows(rows: Sequence[Row], console: Console) -> None:
    """The table, what its columns mean, and the summary."""
    if rows:
        console.print(table(rows))
        console.print(LEGEND, style="dim")
        console.print(summary(rows))


@contextmanager
def progress(total: int, console: Console) -> Iterator[Observer]:
    """A bar that advances by a row whenever the function it yields is called with one."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("measuring", total=total)

        def observe(row: Row) -> None:
            title = f"{row['layer']} {row['direction']} {row['precision']}"
            bar.update(task, advance=1, description=title)

        yield observe
