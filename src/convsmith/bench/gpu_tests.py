"""The tests that need a GPU, run and counted."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from convsmith.bench.record import Tests
from convsmith.errors import ConvSmithError

_MOST_PROCESSES = 16  # each has its own memory on the GPU


def run(tests: Path) -> Tests:
    """Run every test marked gpu under ``tests``; pytest's own output goes to the terminal.

    Several run at once, because most of their time is the compiler's.

    Raises:
        ConvSmithError: pytest did not finish: it could not collect the tests, or was stopped.
    """
    with tempfile.TemporaryDirectory(prefix="convsmith-") as folder:
        report = Path(folder, "junit.xml")
        processes = min(len(os.sched_getaffinity(0)), _MOST_PROCESSES)
        several = ["-n", str(processes), "--dist", "loadgroup"]
        which = ["-m", "gpu", f"--junitxml={report}", str(tests)]
        command = [sys.executable, "-m", "pytest", *several, *which]
        status = subprocess.run(command, check=False).returncode
        if status not in (0, 1):  # 1: some tests failed, which the count says
            raise ConvSmithError(f"the GPU tests did not finish: pytest's exit status is {status}")
        if _uncollected(report):
            raise ConvSmithError("the GPU tests did not finish: pytest could not collect them")
        return count(report)


def _uncollected(report: Path) -> bool:
    errors = ElementTree.parse(report).getroot().iter("error")
    return any(error.get("message") == "collection failure" for error in errors)


def count(report: Path) -> Tests:
    """What a JUnit report holds; an error in a test's preparation counts as a failure."""
    tests: Tests = {"passed": 0, "failed": 0, "skipped": 0}
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        total, failures, errors, skipped = (
            int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")
        )
        tests["failed"] += failures + errors
        tests["skipped"] += skipped
        tests["passed"] += total - failures - errors - skipped
    return tests
