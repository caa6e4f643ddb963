"""Every error ConvSmith raises of its own, each naming what happened and what to do about it."""

from __future__ import annotations


class ConvSmithError(RuntimeError):
    """Base class of ConvSmith's own errors.

    Errors of a caller's arguments that PyTorch also refuses are not of this class: they are
    PyTorch's own, so that code which catches them goes on working.
    """


class KernelUnavailableError(ConvSmithError):
    """An explicitly requested kernel family cannot do this convolution; the message says why."""


class ToolchainError(ConvSmithError):
    """No usable CUDA compiler was found; the message says what was looked at and how to get one."""


class CompilationError(ConvSmithError):
    """A compiler refused a kernel.

    Attributes:
        log: what the compiler printed.
        command: the command that reproduces it, or an empty string where none was started.
    """

    def __init__(self, message: str, *, log: str = "", command: str = "") -> None:
        parts = [message]
        if command:
            parts.append(f"To reproduce it:\n  {command}")
        if log:
            parts.append(f"What the compiler printed:\n{log.rstrip()}")
        super().__init__("\n".join(parts))
        self.log = log
        self.command = command


class CompilationDisabledError(ConvSmithError):
    """A kernel is not in the cache and CONVSMITH_NO_COMPILE forbids compiling it."""


class CacheError(ConvSmithError):
    """The kernel cache cannot be used: its folder, its permissions, its disk or its lock."""


class SimulatorError(ConvSmithError):
    """A simulated kernel was stopped: a bad access, undefined behaviour or a barrier mismatch."""


class ProblemError(ConvSmithError):
    """A KernelBench-style problem or solution file cannot be used; the message says why."""
