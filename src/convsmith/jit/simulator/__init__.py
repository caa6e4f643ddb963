"""Kernels on the CPU: every CUDA thread a fibre, under AddressSanitizer and UBSan.

What it sees and what it cannot see is in docs/simulator.md.
"""

from __future__ import annotations

import atexit
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from convsmith.errors import SimulatorError
from convsmith.jit.simulator.build import KERNEL_FILE, executable
from convsmith.jit.simulator.server import Buffer, Server, ServerEnded

if TYPE_CHECKING:
    from convsmith.kernels.source import KernelSource

__all__ = ["Buffer", "run"]

# Each is a process of some megabytes, and starting one takes some hundredths of a second.
_MOST_SERVERS = 8

_SANITIZER_ERROR = re.compile(r"(?:runtime error|ERROR: AddressSanitizer): (.*)$", re.MULTILINE)
_KERNEL_FRAME = re.compile(rf"^ +#(\d+) .*\b{re.escape(KERNEL_FILE)}:(\d+)", re.MULTILINE)

_servers: OrderedDict[KernelSource, Server] = OrderedDict()  # the one used last comes last
_lock = threading.Lock()


def run(
    source: KernelSource,
    problem: bytes,
    buffers: Sequence[Buffer | None],
    *,
    time_limit: float = 300.0,
) -> None:
    """Launches ``source`` on copies of ``buffers`` and copies back the writable ones.

    The launch runs twice, threads in ascending and in descending order, and both must agree to
    the bit.

    Args:
        source: the kernel.
        problem: what it is told of the problem, as on a GPU.
        buffers: what it gets the addresses of, in order; None is a null pointer.
        time_limit: seconds for both runs.

    Raises:
        SimulatorError: a bad access, undefined behaviour, threads that miss each other at a
            barrier, a result that depends on their order, no end within ``time_limit``, or an
            error text from the kernel's own host code.
        ToolchainError, CompilationDisabledError, CompilationError, CacheError: it could not be
            compiled.
    """
    with _lock:
        server = _servers.pop(source, None)
        if server is not None and not server.is_alive:
            server.end()
            server = None
        if server is None:
            server = Server(executable(source))
        try:
            error = server.launch(problem, buffers, time_limit)
        except ServerEnded as ended:
            server.end()
            raise SimulatorError(_explanation(source, str(ended))) from None
        except BaseException:
            server.end()
            raise
        _servers[source] = server
        if len(_servers) > _MOST_SERVERS:
            _servers.popitem(last=False)[1].end()
    if error:
        raise SimulatorError(f"{source.name}: {error}")


def _explanation(source: KernelSource, report: str) -> str:
    """What went wrong in plain words, the kernel's lines that led there, then the whole report."""
    said = re.search(r"^simulator: (.*)$", report, re.MULTILINE)
    what = said[1] if said else "the program was stopped"
    if what.endswith(" was stopped") and (error := _SANITIZER_ERROR.search(report)):
        what += f": {error[1]}"
    text = source.cuda.splitlines()
    lines = [f"  line {line}: {text[line - 1].strip()}" for line in _call_stack(report)]
    return "\n".join([f"{source.name}: {what}", *lines, "", report.rstrip()])


def _call_stack(report: str) -> list[int]:
    """Lines of the kernel's text on the first stack in a report, the innermost first."""
    lines: list[int] = []
    last_frame = -1
    for frame, line in _KERNEL_FRAME.findall(report):
        if int(frame) <= last_frame:  # another stack begins
            break
        last_frame = int(frame)
        if int(line) not in lines:  # a recursion would fill the screen
            lines.append(int(line))
    return lines


def _end_all() -> None:
    while _servers:
        _servers.popitem()[1].end()


def _forget_all() -> None:
    """In a forked child: the programs go on serving the parent."""
    global _lock
    _lock = threading.Lock()
    while _servers:
        _servers.popitem()[1].disown()


atexit.register(_end_all)
os.register_at_fork(after_in_child=_forget_all)
