"""What `check` found: a row for each test, one verdict, an exit status."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any


class Verdict(str, Enum):
    """The answer of one test or of all of them; NOT_APPLICABLE is of a test only."""

    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWN = "unknown"
    NOT_APPLICABLE = "not applicable"


EXIT_STATUS = {Verdict.RIGHT: 0, Verdict.WRONG: 1, Verdict.UNKNOWN: 2}


@dataclass(frozen=True)
class Row:
    """One test.

    Attributes:
        test: its name.
        verdict: the answer.
        expected: what a right solution does.
        came: what this one did; for an unknown or not applicable test, the reason.
        smallest: lines of Python that recreate the smallest input found to show a failure.
        beside: the row informs and does not count for the verdict.
        measured: numbers behind the answer, errors relative to the output.
    """

    test: str
    verdict: Verdict
    expected: str
    came: str
    smallest: str = ""
    beside: bool = False
    measured: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON's types; numbers that JSON does not have become their names."""
        numbers = {
            name: value if math.isfinite(value) else str(value)
            for name, value in self.measured.items()
        }
        return {**asdict(self), "verdict": self.verdict.value, "measured": numbers}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Row:
        """The row that `to_dict` wrote."""
        numbers = {name: float(value) for name, value in values["measured"].items()}
        return cls(**{**values, "verdict": Verdict(values["verdict"]), "measured": numbers})


@dataclass(frozen=True)
class Report:
    """Every row of one `check`.

    Attributes:
        problem, solution: the files.
        device: what the tests ran on, in words.
        rows: in the order of the tests.
        notes: what else a reader should know, a sentence each.
        seconds: the time that it took.
    """

    problem: Path
    solution: Path
    device: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def verdict(self) -> Verdict:
        """Wrong if any test is, else unknown if any is or none applied, else right."""
        verdicts = [row.verdict for row in self.rows if not row.beside]
        for verdict in (Verdict.WRONG, Verdict.UNKNOWN):
            if verdict in verdicts:
                return verdict
        return Verdict.RIGHT if Verdict.RIGHT in verdicts else Verdict.UNKNOWN

    @property
    def exit_status(self) -> int:
        """0 right, 1 wrong, 2 could not tell."""
        return EXIT_STATUS[self.verdict]

    @property
    def sentence(self) -> str:
        """The verdict in one line, with the first row that decided it."""
        counted = [row for row in self.rows if not row.beside]
        if self.verdict is Verdict.RIGHT:
            right = [row for row in counted if row.verdict is Verdict.RIGHT]
            return f"right: {len(right)} test{'s' * (len(right) > 1)} on {self.device}"
        deciding = [row for row in counted if row.verdict is self.verdict]
        if not deciding:
            return "could not tell: no test applied"
        first = f"{deciding[0].test}: {deciding[0].came}"
        if self.verdict is Verdict.UNKNOWN:
            return f"could not tell: {first}"
        more = f" (and {len(deciding) - 1} more)" if len(deciding) > 1 else ""
        return f"wrong: {first}{more}"

    def to_json(self) -> str:
        """The report as JSON text."""
        content = {
            "problem": str(self.problem),
            "solution": str(self.solution),
            "verdict": self.verdict.value,
            "exit_status": self.exit_status,
            "sentence": self.sentence,
            "device": self.device,
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
            "rows": [row.to_dict() for row in self.rows],
        }
        return json.dumps(content, indent=2, allow_nan=False)
