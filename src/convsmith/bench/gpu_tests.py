"""The tests that need a GPU, run and counted."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from convsmith.bench.record import Tests
from convsmith.errors import ConvSmithError


def run(tests: Path) -> Tests:
    """Run every test marked gpu under ``tests``; pytest's own output goes to the terminal.

    Raises:
        ConvSmithError: pytest did not finish: it could not collect the tests, or was stopped.
    """
    with tempfile.TemporaryDirectory(prefix="convsmith-") as folder:
        report = Path(folder, "junit.xml")
        command = [sys.executable, "-m", "pytest", "-m", "gpu", f"--junitxml={report}", str(tests)]
        status = subprocess.run(command, check=False).returncode
        if status not in (0, 1):  # 1: some tests failed, which the count says
            raise ConvSmithError(f"the GPU tests did not finish: pytest's exit status is {status}")
        return count(report)


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
