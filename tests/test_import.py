"""``import convsmith`` does nothing but define names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src"

# Fails inside the import on anything that starts a process or touches CUDA, and names it.
# torch itself is imported first: what it does at import is not ours.
CHILD = """
import sys
import time

import torch

def refuse(event, arguments):
    if event in {"subprocess.Popen", "os.fork", "os.posix_spawn", "os.system", "socket.connect"}:
        raise AssertionError(f"importing convsmith caused {event}{arguments}")
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        raise AssertionError(f"importing convsmith opened {arguments[0]} for writing")
    if event in {"os.mkdir", "os.rename", "os.remove"}:
        raise AssertionError(f"importing convsmith caused {event}{arguments}")

sys.addaudithook(refuse)
started = time.perf_counter()
import convsmith
print(time.perf_counter() - started)
assert convsmith.conv2d and convsmith.Conv2d and convsmith.plan and convsmith.simulator
assert not torch.cuda.is_initialized()
"""


def import_in_a_child(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run CHILD with ``folder`` as home and working folder."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": str(SOURCE),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_importing_has_no_side_effects(tmp_path: Path) -> None:
    child = import_in_a_child(tmp_path)
    assert child.returncode == 0, child.stderr
    assert list(tmp_path.rglob("*")) == []
    assert child.stderr == ""


def test_importing_adds_little_to_importing_torch(tmp_path: Path) -> None:
    """At most half a second, where importing torch takes one or two."""
    child = import_in_a_child(tmp_path)
    assert float(child.stdout) < 0.5
