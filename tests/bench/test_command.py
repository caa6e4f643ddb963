"""`convsmith bench` as a function: what it prints, writes and returns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from convsmith.bench import command, record, run
from convsmith.bench.command import bench_problems, bench_suite, peers
from convsmith.bench.contestants import Peer
from convsmith.bench.selections import Selection
from convsmith.errors import ConvSmithError
from convsmith.spec import Precision

PROBLEM = Path(__file__).with_name("problem_conv.py")


@pytest.fixture
def gpu(bench_on_cpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says it has a GPU."""
    monkeypatch.setattr(run, "require_gpu", lambda: bench_on_cpu)


def test_peers_are_named_in_a_list() -> None:
    assert peers("torch,channels_last") == (Peer.TORCH, Peer.CHANNELS_LAST)
    assert peers("compile, torch") == (Peer.TORCH, Peer.COMPILE)
    assert peers("") == (Peer.TORCH,)
    with pytest.raises(ConvSmithError, match="no peer nobody; there is torch, channels_last"):
        peers("torch,nobody")


@pytest.mark.usefixtures("gpu")
def test_a_suite_is_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "result.json"
    assert bench_suite(Selection("tiny"), (Peer.TORCH,), json=output) == command.ALL_RIGHT
    shown = capsys.readouterr().out
    assert shown.count("grad_weight") >= 4
    assert "An Invented GPU: copy 4.00 TB/s" in shown
    assert len(record.load(output)["rows"]) == 12


@pytest.mark.usefixtures("gpu")
def test_a_record_that_is_there_is_continued(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    narrow = Selection("tiny", layers=("dense",))
    bench_suite(narrow, (Peer.TORCH,), json=output)
    bench_suite(Selection("tiny"), (Peer.TORCH,), json=output)
    rows = record.load(output)["rows"]
    assert [row["run"] for row in rows] == [0] * 6 + [1] * 6


@pytest.mark.usefixtures("gpu")
def test_a_wrong_result_is_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    from convsmith import execute

    right = execute.forward
    monkeypatch.setattr(execute, "forward", lambda *arguments: right(*arguments) + 1)
    assert bench_suite(Selection("tiny"), (Peer.TORCH,)) == command.SOME_WRONG


@pytest.mark.usefixtures("gpu")
def test_problems_are_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "result.json"
    status = bench_problems([PROBLEM], (Peer.TORCH,), json=output, precisions=[Precision.TF32])
    assert status == command.ALL_RIGHT
    assert "problem_conv" in capsys.readouterr().out
    assert [row["layer"] for row in record.load(output)["rows"]] == ["problem_conv"]


def test_what_cannot_be_measured_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConvSmithError, match="needs an NVIDIA GPU"):
        bench_suite(Selection(), (Peer.TORCH,))
    with pytest.raises(ConvSmithError, match="needs an NVIDIA GPU"):
        bench_problems([PROBLEM], (Peer.TORCH,))
    with pytest.raises(ConvSmithError, match="nothing is measured in float64, only in tf32"):
        Selection(precisions=(Precision.FLOAT64,))
    with pytest.raises(ConvSmithError, match="nothing is measured in float64"):
        bench_problems([PROBLEM], (Peer.TORCH,), precisions=[Precision.FLOAT64])
