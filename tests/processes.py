"""What became of a process that a test started or asked for."""

from __future__ import annotations

import time
from pathlib import Path


def is_running(process: int) -> bool:
    """Whether it is there and no zombie that nobody has waited for."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ends while it is read
        return False


def wait_until_ended(process: int, seconds: float) -> None:
    """Return when it has ended, and fail where it takes longer than that."""
    deadline = time.monotonic() + seconds
    while is_running(process):
        assert time.monotonic() < deadline, f"process {process} is still there"
        time.sleep(0.01)
