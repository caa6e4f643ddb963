"""A Python process that runs a piece of code with this checkout's convsmith."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SOURCE = Path(__file__).parent.parent.parent / "src"


class Child(subprocess.Popen[str]):
    """``python -c code *arguments``; keywords are environment variables."""

    def __init__(self, code: str, *arguments: object, **environment: str) -> None:
        super().__init__(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, line: str) -> None:
        """Returns once it has printed ``line``."""
        assert self.stdout is not None
        if (printed := self.stdout.readline().rstrip("\n")) != line:
            raise AssertionError(f"{printed!r}, not {line!r}: {self.communicate()}")

    def output(self) -> str:
        """What it printed, once it has ended well."""
        output, errors = self.communicate(timeout=120)
        assert self.returncode == 0, errors
        return output.strip()


StartChild = Callable[..., Child]
