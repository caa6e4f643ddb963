"""Each trial of `check` finds the faults that it is for, and finds none in a right solution."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import zoo

from convsmith.kernelbench.child import Request, run
from convsmith.kernelbench.report import Row, Verdict
from convsmith.kernelbench.trials import TRIALS

# What cannot be tried on the CPU.
NOT_ON_CPU = {"another stream"}


def rows_of(
    folder: Path, solution: str, *, problem: str = zoo.PROBLEM, trials: Iterable[str] = TRIALS
) -> dict[str, Row]:
    """Run trials on the CPU in this process; the child process has tests of its own."""
    files = {"problem": folder / "problem.py", "solution": folder / "solution.py"}
    files["problem"].write_text(problem)
    files["solution"].write_text(solution)
    rows: dict[str, Row] = {}

    def send(message: dict) -> None:
        if "row" in message:
            row = Row.from_dict(message["row"])
            rows[row.test] = row

    run(
        Request(
            problem=str(files["problem"]),
            solution=str(files["solution"]),
            device="cpu",
            simulate=False,
            trials=list(trials),
        ),
        send,
    )
    return rows


def those(rows: dict[str, Row], verdict: Verdict) -> set[str]:
    return {row.test for row in rows.values() if row.verdict is verdict and not row.beside}


@pytest.mark.parametrize("name", zoo.RIGHT)
def test_right(tmp_path: Path, name: str) -> None:
    rows = rows_of(tmp_path, zoo.RIGHT[name])
    assert those(rows, Verdict.WRONG) == set(), rows
    assert those(rows, Verdict.UNKNOWN) == set(), rows
    assert those(rows, Verdict.NOT_APPLICABLE) == NOT_ON_CPU


@pytest.mark.parametrize("name", zoo.WRONG)
def test_wrong(tmp_path: Path, name: str) -> None:
    change = zoo.WRONG[name]
    trials = change.tests if change.alone else TRIALS
    rows = rows_of(tmp_path, zoo.changed(name), trials=trials)
    wrong = those(rows, Verdict.WRONG)
    assert change.tests <= wrong
    assert change.others or wrong == change.tests
    assert those(rows, Verdict.UNKNOWN) == set()
    assert all(rows[test].came for test in wrong)
