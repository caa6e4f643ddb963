"""The report: its verdict, its exit status, its sentence, JSON, and the table."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from convsmith.kernelbench import render
from convsmith.kernelbench.report import Report, Row, Verdict

RIGHT, WRONG, UNKNOWN, NOT_APPLICABLE = (
    Verdict.RIGHT,
    Verdict.WRONG,
    Verdict.UNKNOWN,
    Verdict.NOT_APPLICABLE,
)


def row(verdict: Verdict, test: str = "a test", **more) -> Row:
    return Row(test, verdict, "this", "that", **more)


def report_of(*rows: Row, notes: tuple[str, ...] = ()) -> Report:
    return Report(Path("problem.py"), Path("solution.py"), "a GPU", rows, notes, 1.5)


@pytest.mark.parametrize(
    ("verdicts", "verdict", "status"),
    [
        ([RIGHT, NOT_APPLICABLE], RIGHT, 0),
        ([RIGHT, WRONG, UNKNOWN], WRONG, 1),
        ([RIGHT, UNKNOWN], UNKNOWN, 2),
        ([NOT_APPLICABLE], UNKNOWN, 2),
        ([], UNKNOWN, 2),
    ],
)
def test_verdict(verdicts: list[Verdict], verdict: Verdict, status: int) -> None:
    found = report_of(*(row(verdict) for verdict in verdicts))
    assert found.verdict is verdict
    assert found.exit_status == status


def test_what_stands_beside_the_verdict_does_not_count() -> None:
    assert report_of(row(RIGHT), row(WRONG, beside=True)).verdict is RIGHT


def test_sentences() -> None:
    assert report_of(row(RIGHT), row(NOT_APPLICABLE)).sentence == "right: 1 test on a GPU"
    wrong = report_of(row(RIGHT), row(WRONG, "first"), row(WRONG, "second"))
    assert wrong.sentence == "wrong: first: that (and 1 more)"
    assert report_of(row(UNKNOWN)).sentence == "could not tell: a test: that"
    assert report_of(row(NOT_APPLICABLE)).sentence == "could not tell: no test applied"


def test_json_is_json_whatever_was_measured() -> None:
    measured = {"rms_error": math.nan, "max_error": math.inf, "torch_rms_error": 1e-7}
    text = report_of(row(WRONG, measured=measured), notes=("a note",)).to_json()
    content = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert content["verdict"] == "wrong"
    assert content["exit_status"] == 1
    assert content["notes"] == ["a note"]
    assert content["rows"][0]["measured"] == {
        "rms_error": "nan",
        "max_error": "inf",
        "torch_rms_error": 1e-7,
    }


def test_rows_survive_the_pipe() -> None:
    before = row(WRONG, smallest="inputs = []", beside=True, measured={"max_error": math.inf})
    assert Row.from_dict(json.loads(json.dumps(before.to_dict()))) == before


def text_of(found: Report, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render.report(found))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_the_table_says_everything_and_ends_with_the_verdict() -> None:
    found = report_of(
        row(RIGHT, "first"),
        row(WRONG, "[second]", smallest="torch.manual_seed(1); inputs = [torch.rand(2)[..., ::2]]"),
        row(WRONG, "third", smallest="torch.manual_seed(1); inputs = [torch.rand(2)[..., ::2]]"),
        row(WRONG, "a rule", beside=True),
        notes=("a note",),
    )
    lines = text_of(found).splitlines()
    assert lines[0] == "solution.py against problem.py"
    assert lines[-1] == "wrong: [second]: that (and 1 more)"
    joined = "\n".join(lines)
    # Brackets are not taken for markup, and an input that shows two failures is printed once.
    assert joined.count("inputs = [torch.rand(2)[..., ::2]]") == 1
    assert "[second]; third:" in joined
    assert "does not hold" in joined
    assert "a note" in joined


def test_a_right_report_shows_no_inputs() -> None:
    assert "smallest input" not in text_of(report_of(row(RIGHT)))
