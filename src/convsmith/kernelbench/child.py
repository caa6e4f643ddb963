"""The child process of `check`: it loads both files and runs the trials, reporting as it goes.

    python -m convsmith.kernelbench.child '{"problem": …, "solution": …, …}' <descriptor>

Every message is a line of JSON on the descriptor:

    {"trial": name}     a trial begins
    {"case": line}      the solution is about to get this input
    {"row": {…}}        a row; it takes the place of an earlier one of the same test
    {"device": words}   what the trials run on
    {"lost": true}      the GPU answers this process no more, and the process ends
    {"done": true}      the last message
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import cpp_extension

from convsmith.errors import ProblemError
from convsmith.kernelbench.problem import describe, load_problem, load_solution
from convsmith.kernelbench.report import Row, Verdict
from convsmith.kernelbench.trials import TRIALS, Trial
from convsmith.kernelbench.trials.subject import (
    DeviceLostError,
    NotApplicableError,
    SolutionError,
    Subject,
    UndecidedError,
)

PROBLEM = "the problem file"
LOADS = "the solution file"
BUILDS = "ModelNew"
# Without any of these nothing else can be found out.
FIRST = (PROBLEM, LOADS, BUILDS)

# What a solution that compiles says where there is no compiler: the machine's fault.
NO_COMPILER = ("CUDA_HOME environment variable is not set", "Ninja is required")
PR_SET_PDEATHSIG = 1

Send = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Request:
    """What the child is asked to do.

    Attributes:
        problem, solution: absolute paths.
        device: PyTorch's name of the device.
        simulate: run the solution's kernels in the simulator.
        trials: names of the trials to run.
    """

    problem: str
    solution: str
    device: str
    simulate: bool
    trials: list[str]

    def to_json(self) -> str:
        """The request as the child's argument."""
        return json.dumps(asdict(self))


class _Stop(Exception):
    """Nothing else can be found out."""


def main() -> None:
    """Do what the arguments ask for, then end at once, whatever the solution left running."""
    request, descriptor = Request(**json.loads(sys.argv[1])), int(sys.argv[2])
    sys.argv = [request.solution]
    _die_with_parent()
    # A process that the solution forks must not report in this one's name.
    os.register_at_fork(after_in_child=lambda: os.close(descriptor))

    def send(message: dict[str, Any]) -> None:
        os.write(descriptor, json.dumps(message).encode() + b"\n")

    run(request, send)
    send({"done": True})
    sys.stdout.flush()
    os._exit(0)


def run(request: Request, send: Send) -> None:
    """Load both files and run the trials, as far as they can be run."""
    with suppress(_Stop):
        _run(request, send)


def _run(request: Request, send: Send) -> None:
    device = torch.device(request.device)
    words = torch.cuda.get_device_name(device) if device.type == "cuda" else request.device
    if device.type == "cpu":
        torch.set_num_threads(1)  # more threads cost more than they bring where all is small
    send({"device": "the simulator" if request.simulate else words})
    subject = _subject(request, device, send)
    _builds(subject, send)
    for name in request.trials:
        run_trial(subject, name, TRIALS[name], send)


def run_trial(subject: Subject, name: str, trial: Trial, send: Send) -> None:
    """Run one trial; whatever ends it becomes a row."""
    send({"trial": name})
    try:
        for row in trial(subject, name):
            send({"row": row.to_dict()})
    except SolutionError as error:
        send(_row(name, Verdict.WRONG, "runs, as Model does", str(error)))
        if isinstance(error, DeviceLostError):
            send({"lost": True})
            os._exit(1)
    except NotApplicableError as error:
        send(_row(name, Verdict.NOT_APPLICABLE, "", str(error)))
    except UndecidedError as error:
        send(_row(name, Verdict.UNKNOWN, "", str(error)))
    except Exception as error:
        send(_row(name, Verdict.UNKNOWN, "", f"the check itself failed: {describe(error)}"))
    if subject.device.type == "cuda":
        torch.cuda.empty_cache()  # the next trial may need other sizes


def _subject(request: Request, device: torch.device, send: Send) -> Subject:
    """Load both files; a row for the one that cannot be used."""
    source = Path(request.solution)
    send({"trial": PROBLEM})
    try:
        problem = load_problem(Path(request.problem))
    except ProblemError as error:
        send(_row(PROBLEM, Verdict.UNKNOWN, "Model, get_inputs, get_init_inputs", str(error)))
        raise _Stop from error
    send({"trial": LOADS})
    expected = "defines ModelNew"
    before = _defaults()
    try:
        solution = load_solution(source)
    except ProblemError as error:
        no_compiler = any(words in str(error) for words in NO_COMPILER)
        verdict = Verdict.UNKNOWN if no_compiler else Verdict.WRONG
        send(_row(LOADS, verdict, expected, str(error)))
        raise _Stop from error
    if before != (after := _defaults()):
        came = f"it changes PyTorch's defaults from {before} to {after}"
        send(_row(LOADS, Verdict.WRONG, "leaves the process as it is", came))
        raise _Stop
    if request.simulate:
        _simulate(solution)
    send(_row(LOADS, Verdict.RIGHT, expected, "so"))
    send({"trial": PROBLEM})
    try:
        return Subject(
            problem,
            solution,
            source,
            device,
            simulated=request.simulate,
            announce=lambda line: send({"case": line}),
        )
    except ProblemError as error:
        send(_row(PROBLEM, Verdict.UNKNOWN, "a Model that runs on its inputs", str(error)))
        raise _Stop from error


def _defaults() -> str:
    """What a file could change for everyone else in the process, Model included."""
    gradients = "gradients" if torch.is_grad_enabled() else "no gradients"
    return f"{torch.get_default_dtype()} on {torch.get_default_device()} with {gradients}"


def _simulate(solution: type[nn.Module]) -> None:
    """Make an exported file run on the CPU, its kernels in the simulator."""
    from convsmith.kernelbench.simulated import simulated_load_inline

    cpp_extension.load_inline = simulated_load_inline  # type: ignore[assignment]
    sys.modules[solution.__module__].DEVICE_TYPE = "cpu"  # type: ignore[attr-defined]


def _builds(subject: Subject, send: Send) -> None:
    """Construct ModelNew; without one there is nothing to test."""
    send({"trial": BUILDS})
    expected = "can be constructed"
    try:
        subject.pair()
    except SolutionError as error:
        send(_row(BUILDS, Verdict.WRONG, expected, str(error)))
        raise _Stop from error
    send(_row(BUILDS, Verdict.RIGHT, expected, "so"))


def _row(test: str, verdict: Verdict, expected: str, came: str) -> dict[str, Any]:
    return {"row": Row(test, verdict, expected, came).to_dict()}


def _die_with_parent() -> None:
    """Be killed when the parent ends, however it ends; and by the system first of all when memory
    runs out.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main()
