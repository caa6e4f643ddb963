"""One hash of everything that decides how a kernel runs.

A record carries it, so that a test without a GPU sees a kernel that has changed since it was
measured.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parents[1]

# Device code and the Python that tiles and launches it, the binding it is launched through, the
# planner with the times it expects of PyTorch's, and what measures its choice.
SOURCES = (
    "kernels/**/*",
    "jit/binding.cpp",
    "planner.py",
    "pytorch_times.py",
    "choice.py",
    "trial.py",
)


def kernel_files(package: Path = PACKAGE) -> list[Path]:
    """The files that the digest covers, in its order."""
    return sorted(
        (
            path
            for pattern in SOURCES
            for path in package.glob(pattern)
            if path.is_file() and "__pycache__" not in path.parts
        ),
        key=lambda path: path.relative_to(package).as_posix(),
    )


def kernel_digest(package: Path = PACKAGE) -> str:
    """SHA-256 over the path and the contents of each file, every one ended by its length."""
    digest = hashlib.sha256()
    for path in kernel_files(package):
        for part in (path.relative_to(package).as_posix().encode(), path.read_bytes()):
            digest.update(part)
            digest.update(len(part).to_bytes(8, "little"))
    return digest.hexdigest()
