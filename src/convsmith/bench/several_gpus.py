"""A record taken on all GPUs of a machine at once: a process for each part of the work."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch

from convsmith.bench import record
from convsmith.bench.record import Record

# So many parts for each GPU that the last ones to end do not keep the others waiting for long.
_PARTS_OF_A_GPU = 4
# What takes longest, first; start-up times when least else is going on.
_ORDER = ("tests", "sanitizer", "suite", "start-up")

_Job = list[str]  # options of a process


def gpus() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def measure(
    steps: Sequence[str], layers: Sequence[str], options: Sequence[str], seconds: float | None
) -> Iterator[Record]:
    """The record of each process, as it ends. What a process prints comes then, too.

    Args:
        steps: of ``convsmith.bench.gpu_record``.
        layers: that lack rows.
        options: of ``convsmith.bench.gpu_record`` that hold for every process.
        seconds: after which no layer is begun.
    """
    devices = gpus()
    jobs = _jobs(steps, layers, _PARTS_OF_A_GPU * len(devices))
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for device in devices:
        free.put(device)
    started = time.monotonic()

    def work(output: Path, job: _Job) -> Path:
        limit = []
        if seconds is not None:
            left = max(seconds - (time.monotonic() - started), 0)
            limit = [f"--minutes={left / 60:.3f}"]
        device = free.get()
        try:
            _run([f"--output={output}", *job, *options, *limit], device)
        finally:
            free.put(device)
        return output

    with (
        tempfile.TemporaryDirectory(prefix="convsmith-") as folder,
        ThreadPoolExecutor(len(devices)) as pool,
    ):
        parts = [
            pool.submit(work, Path(folder, f"{number}.json"), job)
            for number, job in enumerate(jobs)
        ]
        try:
            for part in as_completed(parts):
                output = part.result()
                if output.exists():
                    yield record.load(output)
        finally:
            for part in parts:  # that have not begun when this is given up
                part.cancel()


def _jobs(steps: Sequence[str], layers: Sequence[str], parts: int) -> list[_Job]:
    """In the order in which they begin.

    A part has layers from here and there in the suites, where neighbours take about as long.
    """
    jobs: list[_Job] = []
    for step in sorted(steps, key=_ORDER.index):
        if step != "suite":
            jobs.append(["--steps", step])
            continue
        dealt = (layers[first::parts] for first in range(parts))
        jobs += [["--steps", step, "--layers", *names] for names in dealt if names]
    return jobs


def _run(options: Sequence[str], device: str) -> None:
    """One process on one GPU."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "convsmith.bench.gpu_record", *options],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": device},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    took = time.monotonic() - begun
    print(f"gpu-record: GPU {device}, {took:.0f} s: {' '.join(options)}\n{done.stdout}", flush=True)
