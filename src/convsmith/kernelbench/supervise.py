"""Run a child process that may do anything, within limits, and say how it ended.

The child reports over a pipe of its own, a line of JSON a message, so that what it found before a
crash is kept. What it prints is read, counted and mostly dropped. It may not stay silent for longer
than a time limit, nor hold more memory than a limit; when it ends, so do the processes it left in
its session.

This guards against mistakes, not against malice: the child has the user's rights.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.05
OUTPUT_KEPT = 4096  # bytes: the end of what the child printed
GRACE_SECONDS = 5.0  # for the process to end after its last message
SHARE_OF_MEMORY = 0.75  # of what is free when the check starts
PAGE = os.sysconf("SC_PAGE_SIZE")

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """What a child may take.

    Attributes:
        step: seconds of the longest silence between two messages.
        total: seconds from start to end.
        memory: resident bytes of all its processes together.
    """

    step: float
    total: float
    memory: int


@dataclass(frozen=True)
class Ending:
    """How a child ended.

    Attributes:
        finished: it sent its last message, ``{"done": true}``.
        status: the exit status, negative for a signal; None where a limit stopped it.
        words: what happened, for a reader.
        printed: bytes that it printed.
    """

    finished: bool
    status: int | None
    words: str
    printed: int


def supervise(
    module: str, arguments: Sequence[str], limits: Limits, receive: Callable[[Message], None]
) -> Ending:
    """Run ``python -m module arguments… <descriptor>`` and give ``receive`` each message.

    The last argument is the descriptor that the child writes its messages to. The child's working
    folder is a temporary one, its input is empty.
    """
    with tempfile.TemporaryDirectory(prefix="convsmith-check-") as folder:
        reader, writer = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-B", "-m", module, *arguments, str(writer)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=_environment(),
                pass_fds=(writer,),
                start_new_session=True,
            )
        finally:
            os.close(writer)
        try:
            return _Watch(process, reader, limits, receive).run()
        finally:
            _end_session(process)
            os.close(reader)


def default_memory_limit() -> int:
    """Three quarters of the memory that is free, by the machine's count and by its cgroup's."""
    free = [_field(Path("/proc/meminfo"), "MemAvailable:") * 1024]
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # "max" where there is no limit
        limit = int((group / "memory.max").read_text())
        taken = int((group / "memory.current").read_text())
        # Cached files count as taken there, and are given up for whoever needs memory.
        free.append(limit - taken + _field(group / "memory.stat", "file"))
    return int(min(free) * SHARE_OF_MEMORY)


class _Watch:
    """One child's pipes and limits."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: int,
        limits: Limits,
        receive: Callable[[Message], None],
    ) -> None:
        assert process.stdout is not None
        self.process = process
        self.limits = limits
        self.receive = receive
        self.finished = False
        self.printed = 0
        self.output = b""
        self.partial = b""
        self.started = self.heard = time.monotonic()
        self.selector = selectors.DefaultSelector()
        for descriptor, read in (
            (reader, self._read_messages),
            (process.stdout.fileno(), self._read_output),
        ):
            os.set_blocking(descriptor, False)
            self.selector.register(descriptor, selectors.EVENT_READ, read)

    def run(self) -> Ending:
        while True:
            ended = self.process.poll() is not None
            self._read_pipes(0 if ended else POLL_SECONDS)
            if ended or self.finished:
                break
            if broken := self._broken_limit():
                return Ending(False, None, broken, self.printed)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_SECONDS)
        status = self.process.poll()
        return Ending(self.finished, status, self._words(status), self.printed)

    def _read_pipes(self, timeout: float) -> None:
        """Read until nothing more is there, or for about POLL_SECONDS where it never ends."""
        until = time.monotonic() + POLL_SECONDS
        while events := self.selector.select(timeout):
            for key, _ in events:
                data = os.read(key.fd, 1 << 16)
                if data:
                    key.data(data)
                else:
                    self.selector.unregister(key.fd)
            timeout = 0
            if time.monotonic() > until:
                break
        if not self.selector.get_map():
            time.sleep(timeout)

    def _read_messages(self, data: bytes) -> None:
        *lines, self.partial = (self.partial + data).split(b"\n")
        for line in lines:
            message = _message(line)
            if message is None:  # the solution wrote to a descriptor that is not its own
                continue
            self.finished = self.finished or "done" in message
            self.receive(message)
            self.heard = time.monotonic()

    def _read_output(self, data: bytes) -> None:
        self.printed += len(data)
        self.output = (self.output + data)[-OUTPUT_KEPT:]

    def _broken_limit(self) -> str:
        now = time.monotonic()
        if now - self.heard > self.limits.step:
            return f"still running after {self.limits.step:g} s, and was stopped"
        if now - self.started > self.limits.total:
            return "the time limit of the whole check was reached"
        if _resident(self.process.pid) > self.limits.memory:
            return f"took more than {self.limits.memory / 2**30:.1f} GiB of memory, and was stopped"
        return ""

    def _words(self, status: int | None) -> str:
        if status is not None and status < 0:
            words = f"the process was killed by {signal.Signals(-status).name}"
            words += f" ({signal.strsignal(-status)})"
        else:
            words = f"the process ended itself with status {status}"
        lines = self.output.decode(errors="replace").strip().splitlines()
        return f"{words}; last printed: {lines[-1][:200]}" if lines else words


def _message(line: bytes) -> Message | None:
    """The message of a line, or None if it is none."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _environment() -> dict[str, str]:
    """This process's, with this very package and this Python's programs found first.

    A program such as ninja lies beside Python, where PATH leads only if the virtual environment was
    activated.
    """
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *(os.path.abspath(path) for path in inherited if path)]
    programs = [os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": os.pathsep.join(programs),
    }


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the child and of the processes it started."""
    for identifier, _ in _processes(process.pid):
        with suppress(ProcessLookupError):
            os.kill(identifier, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _resident(session: int) -> int:
    """Resident bytes of every process of a session."""
    return sum(pages for _, pages in _processes(session)) * PAGE


def _processes(session: int) -> Iterator[tuple[int, int]]:
    """(process, resident pages) of every process of a session."""
    for identifier in filter(str.isdecimal, os.listdir("/proc")):
        try:
            status = Path("/proc", identifier, "stat").read_text()
        except OSError:  # it ended between the two looks
            continue
        # The name, in parentheses, may hold anything; the fields are counted after it.
        fields = status.rpartition(")")[2].split()
        if int(fields[3]) == session:
            yield int(identifier), int(fields[21])


def _field(path: Path, name: str) -> int:
    """The number after ``name`` in a file of /proc."""
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise ValueError(f"{path} has no {name}")
