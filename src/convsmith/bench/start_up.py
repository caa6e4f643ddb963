"""What a call costs beside the GPU's time: compiling, loading, and the host's own work.

    first_call_s   first call of a kernel that nobody has compiled yet, in seconds
    warm_start_ms  first call in a new process whose kernel cache holds it, in milliseconds
    host_us        a later call, until it returns and not until the GPU is done, in microseconds

Each is measured in a child process of its own: `python -m convsmith.bench.start_up`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import convsmith
from convsmith import planner
from convsmith.bench import contestants
from convsmith.bench.accuracy import Distribution
from convsmith.bench.contestants import Operands
from convsmith.bench.suites import Layer
from convsmith.errors import ConvSmithError
from convsmith.kernels import direct
from convsmith.spec import Direction

# So small that the GPU is always done before the host has queued the next call.
LAYER = Layer("tiny", (1, 8, 16, 16), 8, (3, 3), padding=(1, 1))

_CALLS = 200
_SERIES = 25
_CHILD_SECONDS = 300


def measure() -> dict[str, dict[str, float]]:
    """All three, each by what was called.

    Raises:
        ConvSmithError: a child process failed; the message holds what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="convsmith-") as cache:
        cold, warm = _child(cache), _child(cache)
    return {
        "first_call_s": cold["first_call_s"],
        "warm_start_ms": {name: 1e3 * value for name, value in warm["first_call_s"].items()},
        "host_us": warm["host_us"],
    }


def _child(cache: str) -> Any:
    """What a new process with this kernel cache measures."""
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        env={**os.environ, "CONVSMITH_CACHE": cache},
        capture_output=True,
        text=True,
        timeout=_CHILD_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise ConvSmithError(f"measuring the start-up failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the times of this process as one line of JSON."""
    device = torch.device("cuda", torch.cuda.current_device())
    operands = Operands.draw(LAYER, Distribution.RANDN, torch.float32, device)
    F.conv2d(operands.image, operands.weight)  # what PyTorch sets up once is not ours to count
    torch.cuda.synchronize()
    with planner.use_kernel(direct.NAME):
        first_calls = {
            direction.value: _seconds(contestants.ours(LAYER, direction, operands))
            for direction in Direction
        }
        host = _host_times("direct", operands)
    with planner.use_kernel(planner.TORCH):
        host |= _host_times("torch", operands)
    host |= {
        f"F.conv2d, {mode}": time
        for mode, time in _modes(lambda: F.conv2d(*_arguments(operands)), operands).items()
    }
    print(json.dumps({"first_call_s": first_calls, "host_us": host}))


def _seconds(call: Callable[[], object]) -> float:
    """The time of one call until the GPU is done."""
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def _arguments(operands: Operands) -> tuple[Any, ...]:
    return (operands.image, operands.weight, None, LAYER.stride, LAYER.padding)


def _host_times(kernel: str, operands: Operands) -> dict[str, float]:
    """Of ``convsmith.conv2d`` on one kernel, in inference and in a training step's forward."""
    times = _modes(lambda: convsmith.conv2d(*_arguments(operands)), operands)
    return {f"conv2d on {kernel}, {mode}": time for mode, time in times.items()}


def _modes(call: Callable[[], object], operands: Operands) -> dict[str, float]:
    """Microseconds of ``call`` without and with autograd's recording."""
    with torch.no_grad():
        inference = _host_us(call)
    operands.weight.requires_grad_(True)
    training = _host_us(call)
    operands.weight.requires_grad_(False)
    return {"inference": inference, "training": training}


def _host_us(call: Callable[[], object]) -> float:
    """Microseconds of the host for one call: the median over series of calls."""
    series = []
    for _ in range(_SERIES):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(_CALLS):
            call()
        series.append((time.perf_counter() - started) / _CALLS)
    return 1e6 * statistics.median(series)


if __name__ == "__main__":
    main()
