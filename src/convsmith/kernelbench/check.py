"""Is a solution right? Run every trial in a child process and gather what it reports.

    report = check(Path("problem.py"), Path("model_new.py"))
    print(report.sentence)

The solution may do anything: raise, hang, exit, crash, print without end, take all memory. Each of
those is reported in one line, and the trials that are left go on in a fresh process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from convsmith.errors import ProblemError
from convsmith.kernelbench import problem as files
from convsmith.kernelbench.child import FIRST, LOADS, PROBLEM, Request
from convsmith.kernelbench.report import Report, Row, Verdict
from convsmith.kernelbench.supervise import (
    Ending,
    Limits,
    Message,
    default_memory_limit,
    supervise,
)
from convsmith.kernelbench.trials import TRIALS

DEFAULT_TIME_LIMIT = 900.0  # seconds
STEP_SHARE = 0.25  # of the time limit: what a single step may take
MOST_DEATHS = 3  # processes that may die before the check ends
LOUD = 1 << 20  # bytes printed from which on the report mentions them


def check(
    problem: Path,
    solution: Path,
    *,
    simulate: bool = False,
    device: str | None = None,
    time_limit: float = DEFAULT_TIME_LIMIT,
    memory_limit: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Compare the ``ModelNew`` of a solution file with the ``Model`` of a problem file.

    Args:
        problem, solution: the files. The code in them is run.
        simulate: run an exported file's kernels on the CPU, in the simulator, at small sizes.
        device: PyTorch's name of the device to run on; the GPU by default.
        time_limit: seconds for everything; a single step, such as compiling, may take a quarter.
        memory_limit: bytes of main memory; three quarters of what is free by default.
        progress: told the name of each trial as it begins.

    Returns:
        The report. Faults of the files are rows of it and never raised.
    """
    started = time.monotonic()
    gathering = _Gathering(progress or (lambda name: None))
    impossible = _why_not(problem, solution, simulate, device)
    if impossible is not None:
        gathering.rows[impossible.test] = impossible
    else:
        request = Request(
            problem=str(problem.resolve()),
            solution=str(solution.resolve()),
            device=device or ("cpu" if simulate else "cuda"),
            simulate=simulate,
            trials=list(TRIALS),
        )
        memory = memory_limit if memory_limit is not None else default_memory_limit()
        _run_children(request, gathering, started + time_limit, time_limit, memory)
    return Report(
        problem=problem,
        solution=solution,
        device=gathering.device,
        rows=tuple(gathering.rows.values()),
        notes=tuple(gathering.notes),
        seconds=time.monotonic() - started,
    )


class _Gathering:
    """What the children report, and the parent's own rows.

    Attributes:
        rows: the rows by test, in the order in which the tests were first heard of.
        notes: sentences for the report.
        device: what the trials run on, in words.
        trial, case: what a child was doing when last heard of.
        lost: the GPU answers this child no more, as its last row says.
    """

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.progress = progress
        self.rows: dict[str, Row] = {}
        self.notes: list[str] = []
        self.device = "nothing"
        self.begin()

    def begin(self) -> None:
        """Get ready for a new child."""
        self.trial, self.case, self.lost = PROBLEM, "", False

    def receive(self, message: Message) -> None:
        """Take one message of a child; child.py lists them."""
        if "trial" in message:
            self.trial, self.case = message["trial"], ""
            self.progress(self.trial)
        elif "case" in message:
            self.case = message["case"]
        elif "row" in message:
            row = Row.from_dict(message["row"])
            self.rows[row.test] = row
        elif "device" in message:
            self.device = message["device"]
        elif "lost" in message:
            self.lost = True

    def died(self, ending: Ending) -> None:
        """Add the row of the trial in which a child died."""
        # In the first trials only the problem's own code runs before the solution's.
        verdict = Verdict.UNKNOWN if self.trial == PROBLEM else Verdict.WRONG
        self.rows[self.trial] = Row(self.trial, verdict, "comes to an end", ending.words, self.case)


def _why_not(problem: Path, solution: Path, simulate: bool, device: str | None) -> Row | None:
    """The row that says why no child needs to be started, if that is so."""
    unreadable = _unreadable(problem, PROBLEM, Verdict.UNKNOWN) or _unreadable(
        solution, LOADS, Verdict.WRONG
    )
    if unreadable is not None:
        return unreadable
    if simulate and not files.is_exported(solution):
        came = (
            f"{solution} was not written by `convsmith export`, and the simulator runs only such "
            "files; check it without --simulate on a machine with a GPU"
        )
        return Row(LOADS, Verdict.UNKNOWN, "an exported file", came)
    if device is None and not simulate and not torch.cuda.is_available():
        came = (
            "PyTorch sees no GPU here; files that `convsmith export` wrote can be checked in the "
            "simulator, with --simulate"
        )
        return Row("the GPU", Verdict.UNKNOWN, "a GPU", came)
    return None


def _unreadable(path: Path, name: str, verdict: Verdict) -> Row | None:
    """A row if a file is not Python, of this verdict, or is not there."""
    try:
        files.parse(path)
    except ProblemError as error:
        return Row(name, verdict if path.is_file() else Verdict.UNKNOWN, "", str(error))
    return None


def _run_children(
    request: Request, gathering: _Gathering, until: float, time_limit: float, memory: int
) -> None:
    """Run the trials in a child, and those after the one it dies of in another."""
    printed = 0
    for deaths in range(1, MOST_DEATHS + 1):
        gathering.begin()
        left = until - time.monotonic()
        limits = Limits(step=time_limit * STEP_SHARE, total=left, memory=memory)
        ending = supervise(
            "convsmith.kernelbench.child", [request.to_json()], limits, gathering.receive
        )
        printed += ending.printed
        if ending.finished:
            break
        if not gathering.lost:
            gathering.died(ending)
        if gathering.trial in FIRST:
            break
        request.trials[:] = request.trials[request.trials.index(gathering.trial) + 1 :]
        if not request.trials:
            break
        if deaths == MOST_DEATHS or time.monotonic() > until:
            reason = "no time was left" if deaths < MOST_DEATHS else f"{deaths} processes died"
            _not_reached(gathering, request.trials, reason)
            break
    if printed > LOUD:
        gathering.notes.append(f"The solution printed {printed >> 20} MiB, which is not shown.")


def _not_reached(gathering: _Gathering, trials: list[str], reason: str) -> None:
    """A row for what was not tried."""
    came = f"not reached, as {reason}: {', '.join(trials)}"
    gathering.rows["the other tests"] = Row("the other tests", Verdict.UNKNOWN, "", came)
