"""compute-sanitizer's verdict on the kernels: accesses, shared-memory races, barriers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from convsmith.errors import ConvSmithError
from convsmith.jit import toolchain

TOOLS = ("memcheck", "racecheck", "synccheck")

_SUMMARY = re.compile(
    r"(?:ERROR SUMMARY: (?P<errors>\d+) error|RACECHECK SUMMARY: (?P<hazards>\d+) hazard)"
)
_LINES_SHOWN = 40


def run(script: Path, seconds: float = 600) -> dict[str, int]:
    """Run ``script`` under each tool: how many errors (racecheck: hazards) each found.

    Args:
        script: a Python program that launches the kernels and checks their results.
        seconds: how long each run may take.

    Raises:
        ConvSmithError: there is no compute-sanitizer, it gave no verdict, or the script failed.
    """
    sanitizer = find()
    # Every tensor in an allocation of its own, so that one element past its end is an error; and
    # kernels compiled beforehand, for compilers must not run under the sanitizer.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    python = [sys.executable, str(script)]
    _checked(python, environment, seconds)
    environment["CONVSMITH_NO_COMPILE"] = "1"
    return {
        tool: verdict(_checked([str(sanitizer), "--tool", tool, *python], environment, seconds))
        for tool in TOOLS
    }


def find() -> Path:
    """The program: on PATH, or in the CUDA toolkit's folder.

    Raises:
        ConvSmithError: it is in neither.
    """
    on_path = shutil.which("compute-sanitizer")
    found = Path(on_path) if on_path else toolchain.find_nvcc().home / "bin" / "compute-sanitizer"
    if not found.is_file():
        raise ConvSmithError(
            "compute-sanitizer is neither on PATH nor in the CUDA toolkit's bin/: install the "
            "toolkit's package cuda-sanitizer"
        )
    return found


def verdict(output: str) -> int:
    """The number of errors or hazards in the last summary that compute-sanitizer printed.

    Raises:
        ConvSmithError: it printed none.
    """
    summaries = list(_SUMMARY.finditer(output))
    if not summaries:
        raise ConvSmithError(f"compute-sanitizer gave no verdict; it printed\n{_end(output)}")
    return int(summaries[-1]["errors"] or summaries[-1]["hazards"] or 0)


def _checked(command: list[str], environment: dict[str, str], seconds: float) -> str:
    """What ``command`` printed."""
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ConvSmithError(f"{' '.join(command)} took more than {seconds:.0f} s") from error
    if done.returncode != 0:
        raise ConvSmithError(
            f"{' '.join(command)} ended with status {done.returncode}:\n{_end(done.stdout)}"
        )
    return done.stdout


def _end(output: str) -> str:
    return "\n".join(output.rstrip().splitlines()[-_LINES_SHOWN:])
