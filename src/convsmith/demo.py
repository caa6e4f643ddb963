"""`convsmith demo`: three KernelBench problems, exported, checked and, on a GPU, measured.

Where kernels cannot run on a GPU they run in the simulator, at reduced sizes, and no time is shown.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from convsmith.bench import command
from convsmith.bench.contestants import Peer
from convsmith.doctor import diagnose
from convsmith.errors import ProblemError
from convsmith.kernelbench import render
from convsmith.kernelbench.check import check
from convsmith.kernelbench.export import export

PROBLEMS = (
    "82_depthwise_square_input_square_kernel.py",
    "85_depthwise_wide_input_asymmetric_kernel.py",
    "55_conv2d_wide_input_square_kernel.py",
)

IN_THE_SIMULATOR = """\
Kernels cannot run on a GPU here: {reason}. `convsmith doctor` says what to do about it.
They run in the simulator instead: on the CPU, at reduced sizes. No time is shown.
"""
BY_HAND = """
To do the same with a problem file of your own:
  convsmith export problem.py -o model_new.py
  convsmith check problem.py model_new.py{last}"""


def examples() -> Path:
    """The folder of the example problems: beside the modules if installed, else the checkout's.

    Raises:
        ProblemError: there is none.
    """
    package = Path(__file__).parent
    for parent in (package, package.parents[1]):
        if (folder := parent / "examples" / "kernelbench").is_dir():
            return folder
    raise ProblemError(
        f"the example problems are not in {package}: install ConvSmith again, with pip"
    )


def run(console: Console) -> int:
    """Run the demonstration; 0 where every solution is right, else the first failure's status."""
    problems = [examples() / name for name in PROBLEMS]
    missing = next((finding for finding in diagnose() if finding.state == "missing"), None)
    simulate = missing is not None
    if missing:
        reason = f"{missing.topic}: {missing.detail}"
        console.print(IN_THE_SIMULATOR.format(reason=reason), soft_wrap=True, markup=False)
    with tempfile.TemporaryDirectory(prefix="convsmith-demo-") as folder:
        statuses = [
            _export_and_check(problem, Path(folder), simulate, console) for problem in problems
        ]
    if not simulate:
        statuses.append(command.bench_problems(problems, (Peer.TORCH, Peer.CHANNELS_LAST)))
    last = " --simulate" if simulate else "\n  convsmith bench problem.py"
    console.print(BY_HAND.format(last=last), soft_wrap=True)
    return next(filter(None, statuses), 0)


def _export_and_check(problem: Path, folder: Path, simulate: bool, console: Console) -> int:
    """Export one problem and check what was exported; the exit status of `convsmith check`."""
    solution = folder / f"{problem.stem}_new.py"
    console.print(f"[bold]{problem.stem}[/]")
    export(problem, solution)
    lines = len(solution.read_text().splitlines())
    console.print(f"  export  {solution.name}: {lines} lines, self-contained")
    with console.status("  check") as status:
        report = check(
            problem,
            solution,
            simulate=simulate,
            progress=lambda trial: status.update(f"  check   {trial}"),
        )
    console.print(f"  check   {report.sentence}", soft_wrap=True, markup=False)
    if report.exit_status:
        console.print(render.report(report))
    return report.exit_status
