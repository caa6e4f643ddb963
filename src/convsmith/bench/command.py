"""`convsmith bench`: measure a suite or problem files, show a table, write a record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from convsmith.bench import problems, record, render, run
from convsmith.bench.contestants import Peer
from convsmith.bench.measure import Conditions
from convsmith.bench.record import Record, Row
from convsmith.bench.selections import Selection, require_known
from convsmith.bench.suites import PRECISIONS
from convsmith.errors import ConvSmithError
from convsmith.roofline import Ceilings
from convsmith.spec import Precision

ALL_RIGHT = 0
SOME_WRONG = 1


def peers(names: str) -> tuple[Peer, ...]:
    """The peers in a comma-separated list; PyTorch NCHW is always one of them.

    Raises:
        ConvSmithError: there is no such peer.
    """
    known = {peer.value: peer for peer in Peer}
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ConvSmithError(f"no peer {', '.join(unknown)}; there is {', '.join(known)}")
    return tuple(dict.fromkeys((Peer.TORCH, *(known[name] for name in chosen))))


def bench_suite(
    selection: Selection,
    against: Sequence[Peer],
    *,
    json: Path | None = None,
    kernel: str | None = None,
) -> int:
    """Measure ``selection``, print its table and, with ``json``, write the record there.

    A record that is already there is continued: what it holds is not measured again.

    Returns:
        0 where every row measured is right, 1 where one is wrong.

    Raises:
        ConvSmithError: there is no GPU, or the record is of other kernels or another GPU.
    """
    device = run.require_gpu()
    earlier = record.load(json) if json is not None and json.exists() else None
    console = render.new_console()
    whole = run.begin(device, earlier)
    with render.progress(len(run.open_rows([selection], whole)), console) as observe:
        run.fill(
            whole,
            [selection],
            device,
            output=json,
            against=against,
            kernel=kernel,
            observe=observe,
        )
    return _show(whole, console)


def bench_problems(
    paths: Sequence[Path],
    against: Sequence[Peer],
    *,
    json: Path | None = None,
    precisions: Sequence[Precision] = PRECISIONS,
) -> int:
    """Export each problem, check and time ModelNew against Model, print the table.

    Returns:
        0 where every ModelNew is right, 1 where one is wrong.

    Raises:
        ConvSmithError: there is no GPU, or a problem cannot be loaded or exported.
    """
    require_known(precisions)
    device = run.require_gpu()
    console = render.new_console()
    whole = run.begin(device)
    rates = Ceilings(**whole["ceilings"])
    conditions = Conditions(problems.SUITE, device, rates, tuple(against))
    with render.progress(len(paths) * len(precisions), console) as observe:
        for path in paths:
            for row in problems.measure_problem(path, conditions, precisions):
                record.enter(whole, row)
                observe(row)
            if json is not None:
                record.save(whole, json)
    return _show(whole, console)


def _show(whole: Record, console: Console) -> int:
    rows: list[Row] = whole["rows"]
    rates = Ceilings(**whole["ceilings"])
    render.print_rows(rows, console)
    console.print(
        f"{whole['gpu']}: copy {rates.copy_TBps:.2f} TB/s, float32 {rates.fp32_TFLOPs:.0f}, "
        f"TF32 {rates.tf32_TFLOPs:.0f}, float16 {rates.fp16_TFLOPs:.0f}, "
        f"bfloat16 {rates.bf16_TFLOPs:.0f} TFLOP/s, measured in this run"
    )
    return SOME_WRONG if any("fault" in row for row in rows) else ALL_RIGHT
