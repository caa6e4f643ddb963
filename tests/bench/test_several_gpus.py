"""A record taken on several GPUs: processes that run one after the other in this one."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from convsmith.bench import gpu_record, gpu_tests, record, run, sanitizer, selections, start_up
from convsmith.bench import several_gpus as module
from convsmith.bench.selections import Selection
from convsmith.errors import ConvSmithError

Call = tuple[str, list[str]]  # the GPU, and a process's options


@pytest.fixture
def calls(bench_on_cpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Two GPUs, whose processes are functions; each has the other one wait."""
    made: list[Call] = []
    turn = threading.Lock()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(selections, "RECORDED", (Selection("tiny"),))
    monkeypatch.setattr(run, "require_gpu", lambda: bench_on_cpu)
    tests: record.Tests = {"passed": 7, "failed": 0, "skipped": 1}
    monkeypatch.setattr(gpu_tests, "run", lambda tests_folder: tests)
    clean = {"memcheck": 0, "racecheck": 0, "synccheck": 0}
    monkeypatch.setattr(sanitizer, "run", lambda script: clean)
    monkeypatch.setattr(start_up, "measure", lambda: {"first_call_s": {"forward": 4.2}})

    def process(command: list[str], env: dict[str, str], **_: Any) -> Any:
        assert command[1:3] == ["-m", "convsmith.bench.gpu_record"]
        with turn, pytest.MonkeyPatch.context() as child:
            child.setattr(torch.cuda, "device_count", lambda: 1)
            made.append((env["CUDA_VISIBLE_DEVICES"], command[3:]))
            status = gpu_record.main(command[3:])
        return subprocess.CompletedProcess(command, status, f"printed by {len(made)}")

    monkeypatch.setattr(subprocess, "run", process)
    return made


def test_all_gpus_make_a_complete_record(
    calls: list[Call], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "gpu.json"
    assert gpu_record.main(["--output", str(output)]) == gpu_record.COMPLETE
    assert len(record.load(output)["rows"]) == 12
    assert {device for device, _ in calls} == {"0", "1"}
    steps = [options[options.index("--steps") + 1] for _, options in calls]
    assert sorted(steps) == ["sanitizer", "start-up", "suite", "suite", "tests"]
    assert "printed by 1" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [output]


def test_what_is_there_is_not_done_again(calls: list[Call], tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    begun = ["--output", str(output), "--minutes", "9"]
    few = [*begun, "--steps", "suite", "--layers", "dense", "--directions", "forward"]
    assert gpu_record.main(few) == gpu_record.INCOMPLETE
    assert len(calls) == 1
    assert any(one.startswith("--minutes=8.9") or one == "--minutes=9.000" for one in calls[0][1])
    assert gpu_record.main(begun) == gpu_record.COMPLETE
    count = len(calls)
    assert gpu_record.main(begun) == gpu_record.COMPLETE
    assert len(calls) == count


def test_a_process_that_fails_leaves_what_the_others_did(
    calls: list[Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(tests_folder: Path) -> record.Tests:
        raise ConvSmithError("pytest did not finish")

    monkeypatch.setattr(gpu_tests, "run", broken)
    output = tmp_path / "gpu.json"
    assert gpu_record.main(["--output", str(output)]) == gpu_record.INCOMPLETE
    written = record.load(output)
    assert len(written["rows"]) == 12
    assert "tests" not in written
    monkeypatch.setattr(run, "begin", lambda device, earlier: broken(tmp_path))
    nothing = ["--output", str(tmp_path / "other.json"), "--steps", "tests"]
    assert gpu_record.main(nothing) == gpu_record.NOT_DONE


def test_a_process_that_cannot_begin_is_said_and_not_waited_for(
    calls: list[Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("too many processes")

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(OSError, match="too many"):
        gpu_record.main(["--output", str(tmp_path / "gpu.json")])
    assert calls == []


def test_gpus_keep_the_names_that_the_caller_gave_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert module.gpus() == ["3", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert module.gpus() == ["0", "1"]


def test_layers_are_dealt_out_and_the_longest_steps_begin() -> None:
    layers = list("abcdefg")
    jobs = module._jobs(["start-up", "suite", "tests"], layers, 3)
    assert jobs[0] == ["--steps", "tests"]
    assert jobs[-1] == ["--steps", "start-up"]
    assert [job[3:] for job in jobs[1:-1]] == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
