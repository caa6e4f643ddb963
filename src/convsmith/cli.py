"""The command line. Each command calls one function of the part that does the work.

Those parts are imported when their command runs, so that ``--help`` waits for none of them.
Exit status: 0 done or right, 1 wrong or missing, 2 could not be done or could not tell.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from convsmith.bench.render import new_console
from convsmith.bench.suites import DIRECTIONS, DTYPE, PRECISIONS, Layout
from convsmith.errors import ConvSmithError

WRONG = 1
NOT_DONE = 2

app = typer.Typer(
    name="convsmith",
    help="nn.Conv2d on NVIDIA GPUs: check, export and measure CUDA kernels for it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cache_app = typer.Typer(help="The compiled kernels on disk.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

Choice = TypeVar("Choice", bound=Enum)


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _names(choices: Sequence[Enum]) -> str:
    return ",".join(choice.value for choice in choices)


def _chosen(names: str, choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Those of ``choices`` that a comma-separated list names."""
    known = {choice.value: choice for choice in choices}
    unknown = [name for name in _split(names) if name not in known]
    if unknown:
        raise typer.BadParameter(f"no {', '.join(unknown)}; there is {', '.join(known)}")
    return tuple(known[name] for name in _split(names))


def main() -> int:
    """Run the command that ``sys.argv`` names; one line for an error that ConvSmith explains."""
    try:
        app(prog_name="convsmith")
    except ConvSmithError as error:
        print(f"convsmith: {error}", file=sys.stderr)
        return NOT_DONE
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    return 0


@app.command()
def check(
    problem: Annotated[Path, typer.Argument(help="Defines Model, get_inputs, get_init_inputs.")],
    solution: Annotated[Path, typer.Argument(help="Defines ModelNew.")],
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Run an exported file's kernels on the CPU.")
    ] = False,
    time_limit: Annotated[
        float, typer.Option(help="Seconds that the whole check may take.", min=1)
    ] = 900,
) -> None:
    """Say whether a solution is right, and why not. Exit status: 0 right, 1 wrong, 2 unknown."""
    from convsmith.kernelbench import render
    from convsmith.kernelbench.check import check as check_solution

    with Console(stderr=True).status("starting") as status:
        report = check_solution(
            problem, solution, simulate=simulate, time_limit=time_limit, progress=status.update
        )
    if json:
        print(report.to_json())
    else:
        new_console().print(render.report(report))
    raise typer.Exit(report.exit_status)


@app.command()
def export(
    problem: Annotated[Path, typer.Argument(help="Defines Model, get_inputs, get_init_inputs.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write one self-contained solution file whose ModelNew uses ConvSmith's kernels."""
    from convsmith.kernelbench.export import export as export_problem

    notes = export_problem(problem, output, force=force)
    print(f"wrote {output}", *notes, sep="\n")


@app.command()
def bench(
    problems: Annotated[
        list[Path] | None, typer.Argument(help="Problem files; without any, a suite of layers.")
    ] = None,
    suite: Annotated[
        str, typer.Option(help="The suite of layers: core, depthwise, dense.")
    ] = "core",
    against: Annotated[
        str, typer.Option(help="Peers to time beside ConvSmith: torch,channels_last,compile.")
    ] = "torch,channels_last",
    layers: Annotated[str, typer.Option(help="Only these of the suite, as kb55,kb56.")] = "",
    directions: Annotated[str, typer.Option(help="Only these, as the default.")] = _names(
        DIRECTIONS
    ),
    precisions: Annotated[str, typer.Option(help="Classes, as the default.")] = _names(PRECISIONS),
    layouts: Annotated[str, typer.Option(help="Of the tensors: nchw,nhwc.")] = "nchw",
    kernel: Annotated[
        str | None, typer.Option(help="Insist on this kernel family, as 'direct'.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write the record here; one that is there is continued.")
    ] = None,
) -> None:
    """Measure time, ratio, share of the floor, error and memory. Exit status 1: a wrong result."""
    from convsmith.bench import command
    from convsmith.bench.selections import Selection

    peers = command.peers(against)
    classes = _chosen(precisions, tuple(DTYPE))
    if problems:
        status = command.bench_problems(problems, peers, json=json, precisions=classes)
    else:
        selection = Selection(
            suite,
            tuple(_split(layers)),
            _chosen(directions, DIRECTIONS),
            classes,
            _chosen(layouts, tuple(Layout)),
        )
        status = command.bench_suite(selection, peers, json=json, kernel=kernel)
    raise typer.Exit(status)


@app.command()
def doctor() -> None:
    """Say what is here, what is missing and how to get it. Exit status 1: something is missing."""
    from convsmith.doctor import diagnose

    table = Table.grid(padding=(0, 2))
    findings = diagnose()
    for finding in findings:
        colour = {"ok": "green", "warning": "yellow", "missing": "red"}[finding.state]
        table.add_row(Text(finding.state, colour), finding.topic, Text(finding.detail))
        if finding.remedy:
            table.add_row("", "", Text(f"-> {finding.remedy}", "bold"))
    console = new_console()
    console.print(table)
    if any(finding.state == "missing" for finding in findings):
        console.print("ConvSmith's kernels cannot run on a GPU here; PyTorch's convolution does.")
        raise typer.Exit(WRONG)
    console.print("ConvSmith's kernels run here.")


@app.command()
def demo() -> None:
    """Export, check and, on a GPU, measure three KernelBench problems."""
    from convsmith.demo import run

    raise typer.Exit(run(new_console()))


@cache_app.command("list")
def cache_list() -> None:
    """List the compiled kernels, their size and age."""
    from convsmith.jit import cache

    entries = cache.list_entries()
    table = Table("kernel", "built for", "KiB", "compiled in", "age", box=None)
    for entry in entries:
        table.add_row(
            entry.path.name,
            entry.build.architecture,
            f"{entry.size / 1024:.0f}",
            f"{entry.seconds:.1f} s",
            _age(entry.age),
        )
    console = new_console()
    if entries:
        console.print(table)
    console.print(f"{cache.root()}: {len(entries)} in all", soft_wrap=True, markup=False)


@cache_app.command("clear")
def cache_clear() -> None:
    """Remove every compiled kernel; the next use compiles again."""
    from convsmith.jit import cache

    removed = cache.clear()
    print(f"removed {len(removed)} folders from {cache.root()}")


def _age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
