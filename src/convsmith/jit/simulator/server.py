"""A simulated kernel's program, kept running: it takes one launch after the other."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from convsmith.errors import SimulatorError

# AddressSanitizer cannot start where the system has put something in its way, which some kernels
# with much address randomisation do now and then; the next start is likely to succeed.
_ATTEMPTS = 5

# How long the program may take to start, and to notice that a launch took too long.
_GRACE_SECONDS = 20.0

_OPTIONS = {
    # Frames stay on the fibres' stacks: a copy on the heap would have to move with each switch. And
    # nobody asks where the heap's memory comes from: none of it is a kernel's.
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:malloc_context_size=0:"
    "color=never:print_legend=0",
    "UBSAN_OPTIONS": "print_stacktrace=1:color=never",
}


class Buffer(NamedTuple):
    """Memory of this process that a kernel gets the address of.

    Args:
        address: of the first byte.
        nbytes: the kernel may touch this many, and no other.
        writable: whether it may write to them.
    """

    address: int
    nbytes: int
    writable: bool


class ServerEnded(Exception):
    """The program ended instead of answering; the argument is what it printed."""


class Server:
    """A running program; not for use by two threads at once."""

    def __init__(self, executable: Path) -> None:
        """Start it and wait until it is ready."""
        for _ in range(_ATTEMPTS):
            self._start(executable)
            try:
                self._receive(1)
                return
            except ServerEnded as ended:
                self.end()
                printed = str(ended)
        raise SimulatorError(
            f"{executable} does not start:\n{printed}\n"
            "Remedy: if it speaks of memory, lift the limit on this process's address space "
            "(ulimit -v unlimited), or have the system place less of it at random "
            "(sudo sysctl vm.mmap_rnd_bits=28)."
        )

    def _start(self, executable: Path) -> None:
        # The sanitizers must come first among the libraries, so nothing is preloaded.
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_GRACE_SECONDS)
        # A file and not a pipe: nobody need read it while the program runs.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, closed in _close
        self._log_read = 0
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [executable],
                    stdin=theirs.fileno(),
                    stdout=self._log,
                    stderr=self._log,
                    env={**environment, **_OPTIONS},
                    start_new_session=True,  # Ctrl-C is for the caller
                )
            except OSError as error:
                raise SimulatorError(
                    f"{executable} cannot be run: {error.strerror}.\n"
                    "Remedy: set CONVSMITH_CACHE to a folder from which programs may be run."
                ) from error

    @property
    def is_alive(self) -> bool:
        """Whether the program is still there."""
        return self._process.poll() is None

    def launch(self, problem: bytes, buffers: Sequence[Buffer | None], time_limit: float) -> str:
        """Runs the kernel; "" and the writable buffers changed, or what is wrong.

        Raises:
            ServerEnded: the program was ended, most likely by a sanitizer.
        """
        self._socket.settimeout(time_limit + _GRACE_SECONDS)
        given = [buffer or Buffer(0, 0, False) for buffer in buffers]
        self._send(struct.pack("=3Q", round(time_limit * 1e6), len(problem), len(given)), problem)
        self._send(*(struct.pack("=3Q", *buffer) for buffer in given))
        self._send(*map(_view, given))
        error = self._receive(*struct.unpack("=Q", self._receive(8))).decode()
        if not error:
            for buffer in given:
                if buffer.writable:
                    self._receive_into(_view(buffer))
        if printed := self._printed():
            print(printed, end="", file=sys.stderr)
        return error

    def end(self) -> None:
        """Ends the program."""
        self._process.kill()
        self._process.wait()
        self._close()

    def disown(self) -> None:
        """Lets go of a program that belongs to the process this one was forked from."""
        self._process.returncode = 0  # or Popen would look for it among our own children
        self._close()

    def _close(self) -> None:
        self._socket.close()
        self._log.close()

    def _send(self, *parts: bytes | memoryview) -> None:
        try:
            for part in parts:
                self._socket.sendall(part)
        except (ConnectionError, TimeoutError) as error:
            raise self._ended(error) from None

    def _receive(self, nbytes: int) -> bytes:
        received = bytearray(nbytes)
        self._receive_into(memoryview(received))
        return bytes(received)

    def _receive_into(self, target: memoryview) -> None:
        try:
            while target:
                count = self._socket.recv_into(target)
                if count == 0:
                    raise ConnectionError
                target = target[count:]
        except (ConnectionError, TimeoutError) as error:
            raise self._ended(error) from None

    def _ended(self, error: OSError) -> ServerEnded:
        """What to raise when it does not answer, once it has ended."""
        if isinstance(error, TimeoutError):
            self._process.kill()
        status = self._process.wait()
        printed = self._printed()
        if status < 0:
            printed += f"It was ended by signal {-status}."
        return ServerEnded(printed)

    def _printed(self) -> str:
        """What it printed since the last time."""
        size = os.fstat(self._log.fileno()).st_size
        # At a place of our own: the file's position is the program's, which shares it.
        text = os.pread(self._log.fileno(), size - self._log_read, self._log_read)
        self._log_read = size
        return text.decode(errors="replace")


def _view(buffer: Buffer) -> memoryview:
    """The bytes of a buffer, in place."""
    if buffer.nbytes == 0:
        return memoryview(b"")
    return memoryview((ctypes.c_char * buffer.nbytes).from_address(buffer.address)).cast("B")
