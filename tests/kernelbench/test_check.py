"""`check` in a child process: what becomes of solutions that do not behave."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import zoo

from convsmith.kernelbench import check as module
from convsmith.kernelbench.check import check
from convsmith.kernelbench.export import export
from convsmith.kernelbench.report import Report, Verdict
from convsmith.kernelbench.trials import TRIALS

IN_FORWARD = "        c = self.conv2d\n"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def write(folder: Path, solution: str, problem: str = zoo.PROBLEM) -> tuple[Path, Path]:
    paths = folder / "problem.py", folder / "solution.py"
    for path, source in zip(paths, (problem, solution), strict=True):
        path.write_text(source)
    return paths


def misbehaving(code: str) -> str:
    """SOLUTION with code at the start of its forward."""
    lines = "".join(f"        {line}\n" for line in code.splitlines())
    return zoo.SOLUTION.replace(IN_FORWARD, lines + IN_FORWARD)


def only(monkeypatch: pytest.MonkeyPatch, names: Iterable[str]) -> None:
    """Let `check` run some trials only."""
    monkeypatch.setattr(module, "TRIALS", {name: TRIALS[name] for name in names})


def verdicts(report: Report) -> dict[str, Verdict]:
    return {row.test: row.verdict for row in report.rows}


def came(report: Report, test: str) -> str:
    return next(row.came for row in report.rows if row.test == test)


def test_a_right_solution(tmp_path: Path) -> None:
    heard: list[str] = []
    files = write(tmp_path, zoo.SOLUTION)
    report = check(*files, device="cpu", progress=heard.append)
    assert report.verdict is Verdict.RIGHT, report.rows
    assert report.exit_status == 0
    assert report.sentence.startswith("right: ")
    assert [name for name in TRIALS if name not in heard] == []
    content = json.loads(report.to_json())
    assert content["verdict"] == "right"
    assert content["exit_status"] == 0
    assert len(content["rows"]) == len(report.rows)
    assert {path.name for path in tmp_path.iterdir()} == {"problem.py", "solution.py"}


def test_crashes_keep_what_was_found_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segmentation fault, then an exit, then no end; each in one trial only."""
    only(
        monkeypatch,
        ["rand", "other batches", "twice in a row", "a transposed tensor", "wide range", "zeros"],
    )
    solution = misbehaving(
        "import ctypes, os, time\n"
        "if len(x) == 3: ctypes.string_at(0)\n"
        "if not x.is_contiguous(): os._exit(0)\n"
        "if float(x.abs().max()) > 500: time.sleep(1000)"
    )
    report = check(*write(tmp_path, solution), device="cpu", time_limit=40)
    assert verdicts(report) == {
        "the solution file": Verdict.RIGHT,
        "ModelNew": Verdict.RIGHT,
        "rand": Verdict.RIGHT,
        "other batches": Verdict.WRONG,
        "twice in a row": Verdict.RIGHT,
        "a transposed tensor": Verdict.WRONG,
        "wide range": Verdict.WRONG,
        "the other tests": Verdict.UNKNOWN,
    }
    assert "SIGSEGV" in came(report, "other batches")
    assert "ended itself with status 0" in came(report, "a transposed tensor")
    assert came(report, "wide range") == "still running after 10 s, and was stopped"
    assert came(report, "the other tests") == "not reached, as 3 processes died: zeros"
    row = next(row for row in report.rows if row.test == "other batches")
    assert row.smallest.startswith("torch.manual_seed(1); inputs = [torch.randn(3, 3, ")
    assert report.exit_status == 1
    assert report.sentence.endswith("(and 2 more)")


def test_exits_prints_and_processes_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs no fresh process: sys.exit is an exception, output is dropped, forks are ended."""
    only(monkeypatch, ["rand", "other batches"])
    solution = "import os, sys, time\nprint('x' * 50_000_000)\n" + misbehaving(
        "if len(x) == 3: sys.exit(0)\nif os.fork() == 0: time.sleep(1000)"
    )
    report = check(*write(tmp_path, solution), device="cpu")
    assert verdicts(report)["rand"] is Verdict.RIGHT
    line = 1 + (tmp_path / "solution.py").read_text().splitlines().index(
        "        if len(x) == 3: sys.exit(0)"
    )
    called = "SystemExit(0): it called sys.exit"
    assert came(report, "other batches") == f"{called} (line {line} of solution.py)"
    assert report.notes == ("The solution printed 47 MiB, which is not shown.",)


def test_a_fork_that_goes_on_as_if_it_were_the_child_reports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, ["rand", "randn"])
    report = check(*write(tmp_path, misbehaving("import os\nos.fork()")), device="cpu")
    assert [row.test for row in report.rows] == ["the solution file", "ModelNew", "rand", "randn"]
    assert report.exit_status == 0


def test_all_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, ["rand"])
    solution = misbehaving("kept = [b'x' * (1 << 26) for _ in range(10000)]")
    report = check(*write(tmp_path, solution), device="cpu", memory_limit=1 << 30)
    assert came(report, "rand") == "took more than 1.0 GiB of memory, and was stopped"
    assert report.exit_status == 1


@pytest.mark.parametrize(
    ("solution", "problem", "status", "words"),
    [
        ("def broken(:\n", zoo.PROBLEM, 1, "solution.py: does not parse: invalid syntax (line 1)"),
        ("\0", zoo.PROBLEM, 1, "solution.py: does not parse: "),
        (zoo.SOLUTION, "while True print(1)", 2, "problem.py: does not parse: "),
    ],
)
def test_files_that_do_not_parse_start_no_process(
    tmp_path: Path, solution: str, problem: str, status: int, words: str
) -> None:
    report = check(*write(tmp_path, solution, problem), device="cpu")
    assert report.exit_status == status
    assert words in report.sentence
    assert "\n" not in report.sentence


def test_files_that_are_not_there(tmp_path: Path) -> None:
    problem, solution = write(tmp_path, zoo.SOLUTION)
    report = check(problem, tmp_path / "nothing.py", device="cpu")
    assert report.exit_status == 2
    assert report.sentence.endswith("nothing.py: no such file")
    assert check(tmp_path, solution, device="cpu").sentence.endswith(": not a file")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_without_a_gpu_nobody_can_tell(tmp_path: Path) -> None:
    report = check(*write(tmp_path, zoo.SOLUTION))
    assert report.verdict is Verdict.UNKNOWN
    assert report.exit_status == 2
    assert "PyTorch sees no GPU here" in report.sentence
    assert "--simulate" in report.sentence


def test_only_exported_files_can_be_simulated(tmp_path: Path) -> None:
    report = check(*write(tmp_path, zoo.SOLUTION), simulate=True)
    assert report.exit_status == 2
    assert "not written by `convsmith export`" in report.sentence


def test_an_exported_file_in_the_simulator(tmp_path: Path) -> None:
    """All of it but what needs a GPU: the problem's own sizes, streams."""
    problem, solution = tmp_path / "problem.py", tmp_path / "solution.py"
    problem.write_text(zoo.PROBLEM)
    export(problem, solution, force=False)
    report = check(problem, solution, simulate=True)
    assert report.verdict is Verdict.RIGHT, report.rows
    assert report.device == "the simulator"
    skipped = {test for test, verdict in verdicts(report).items() if verdict == "not applicable"}
    assert skipped == {
        "the problem's inputs",
        "gradients of the problem's inputs",
        "another stream",
    }
