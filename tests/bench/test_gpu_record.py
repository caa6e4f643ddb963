"""The steps of `make gpu-record`, each with its program replaced; and the programs' own parsing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convsmith.bench import (
    gpu_record,
    gpu_tests,
    record,
    run,
    sanitizer,
    selections,
    start_up,
)
from convsmith.bench.record import Record
from convsmith.bench.selections import Selection
from convsmith.errors import ConvSmithError
from convsmith.kernels import direct
from convsmith.spec import Direction, Precision

TESTS: record.Tests = {"passed": 7, "failed": 0, "skipped": 1}
CLEAN = {"memcheck": 0, "racecheck": 0, "synccheck": 0}
START_UP = {"first_call_s": {"forward": 4.2}}


@pytest.fixture
def gathered(bench_on_cpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine of one GPU, where every step succeeds at once; the steps in the order they ran."""
    steps: list[str] = []

    def step(name: str, result: object) -> object:
        steps.append(name)
        return result

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(selections, "RECORDED", (Selection("tiny"),))
    monkeypatch.setattr(run, "require_gpu", lambda: bench_on_cpu)
    monkeypatch.setattr(gpu_tests, "run", lambda tests: step("tests", TESTS))
    monkeypatch.setattr(sanitizer, "run", lambda script: step("sanitizer", CLEAN))
    monkeypatch.setattr(start_up, "measure", lambda: step("start-up", START_UP))
    return steps


def test_all_steps_make_a_complete_record(gathered: list[str], tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    assert gpu_record.main(["--output", str(output)]) == gpu_record.COMPLETE
    written = record.load(output)
    assert gathered == ["start-up", "sanitizer", "tests"]
    assert (written["tests"], written["sanitizer"]) == (TESTS, CLEAN)
    assert written["start_up"] == START_UP
    assert len(written["rows"]) == 12


def test_what_is_there_is_not_done_again(gathered: list[str], tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    options = ["--output", str(output)]
    first = gpu_record.main([*options, "--steps", "tests", "suite", "--layers", "dense"])
    assert first == gpu_record.INCOMPLETE
    assert gpu_record.main(options) == gpu_record.COMPLETE
    assert gathered == ["tests", "start-up", "sanitizer"]
    assert {row["run"] for row in record.load(output)["rows"]} == {0, 1}
    before = output.read_bytes()
    assert gpu_record.main(options) == gpu_record.COMPLETE
    assert output.read_bytes() == before


def test_the_suites_of_a_record_are_measured_in_turn(
    gathered: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into one record, which other options continue."""
    half = Selection("tiny", ("depthwise",), precisions=(Precision.BFLOAT16,))
    monkeypatch.setattr(selections, "RECORDED", (Selection("tiny"), half))
    output = tmp_path / "gpu.json"
    options = ["--output", str(output)]
    first = gpu_record.main([*options, "--layers", "depthwise", "--directions", "forward"])
    assert first == gpu_record.INCOMPLETE
    written = [(row["layer"], row["precision"]) for row in record.load(output)["rows"]]
    assert written == [("depthwise", one) for one in ("tf32", "float32", "bfloat16")]
    assert gpu_record.main([*options, "--precisions", "bfloat16"]) == gpu_record.INCOMPLETE
    assert len(record.load(output)["rows"]) == 5
    assert gpu_record.main(options) == gpu_record.COMPLETE
    assert len(record.load(output)["rows"]) == 15
    assert gpu_record.main([*options, "--layers", "nothing"]) == gpu_record.NOT_DONE


def test_a_record_of_other_kernels_is_replaced(gathered: list[str], tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    gpu_record.main(["--output", str(output)])
    stale = record.load(output)
    stale["kernel_digest"] = "0" * 64
    record.save(stale, output)
    gathered.clear()
    assert gpu_record.main(["--output", str(output)]) == gpu_record.COMPLETE
    assert gathered == ["start-up", "sanitizer", "tests"]
    assert len(record.load(output)["runs"]) == 1
    # One that was asked for by name is not silently dropped.
    record.save(stale, tmp_path / "stale.json")
    options = ["--output", str(output), "--merge", str(tmp_path / "stale.json")]
    assert gpu_record.main(options) == gpu_record.NOT_DONE


def test_bad_evidence_is_gathered_again(gathered: list[str], tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    gpu_record.main(["--output", str(output)])
    written = record.load(output)
    written["tests"]["failed"] = 1
    written["sanitizer"]["racecheck"] = 2
    record.save(written, output)
    gathered.clear()
    assert gpu_record.main(["--output", str(output)]) == gpu_record.COMPLETE
    assert gathered == ["sanitizer", "tests"]


@pytest.mark.usefixtures("gathered")
def test_a_step_that_fails_does_not_keep_the_others_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unsupported(script: Path) -> dict[str, int]:
        raise ConvSmithError("compute-sanitizer gave no verdict")

    monkeypatch.setattr(sanitizer, "run", unsupported)
    output = tmp_path / "gpu.json"
    assert gpu_record.main(["--output", str(output)]) == gpu_record.INCOMPLETE
    written = record.load(output)
    assert (written["tests"], len(written["rows"])) == (TESTS, 12)
    assert "sanitizer" not in written
    assert "gave no verdict" in capsys.readouterr().err


def test_records_are_merged_without_a_gpu(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [tmp_path / "first.json", tmp_path / "second.json"]
    for path, rows in zip(parts, (record["rows"][:90], record["rows"][90:]), strict=True):
        path.write_text(json.dumps({**record, "rows": rows}))
    output = tmp_path / "whole.json"
    options = ["--output", str(output), "--merge", *map(str, parts), "--steps"]
    assert gpu_record.main(options) == gpu_record.COMPLETE
    assert len(json.loads(output.read_text())["rows"]) == 726
    assert "complete and right" in capsys.readouterr().out


def test_an_incomplete_record_says_what_is_missing(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = tmp_path / "part.json"
    part.write_text(json.dumps({**record, "rows": record["rows"][:100]}))
    options = ["--output", str(tmp_path / "whole.json"), "--merge", str(part), "--steps"]
    assert gpu_record.main(options) == gpu_record.INCOMPLETE
    printed = capsys.readouterr().out
    assert "not measured" in printed
    assert "and 596 things more" in printed


def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_record.main([]) == gpu_record.NOT_DONE
    assert capsys.readouterr().err.startswith("gpu-record: a benchmark needs an NVIDIA GPU")
    output = ["--output", str(tmp_path / "gpu.json")]
    assert gpu_record.main([*output, "--steps"]) == gpu_record.NOT_DONE
    assert gpu_record.main([*output, "--layers", "kb1"]) == gpu_record.NOT_DONE


def test_the_file_is_named_after_the_gpu(
    gathered: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    gpu_record.main(["--steps", "tests"])
    assert Path("benchmarks/results/h200.json").exists()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA RTX A6000")
    gpu_record.main(["--steps", "tests"])
    assert Path("benchmarks/results/rtx-a6000.json").exists()


GPU_TESTS = """
import pytest
pytestmark = pytest.mark.gpu
def test_right(): pass
def test_right_too(): pass
def test_wrong(): assert False
@pytest.fixture
def broken(): raise OSError
def test_error(broken): pass
@pytest.mark.skip(reason="a reason")
def test_skipped(): pass
"""


def test_gpu_tests_are_counted(tmp_path: Path) -> None:
    (tmp_path / "test_sample.py").write_text(GPU_TESTS)
    (tmp_path / "test_others.py").write_text("def test_without_a_gpu(): assert False")
    assert gpu_tests.run(tmp_path) == {"passed": 2, "failed": 2, "skipped": 1}


def test_gpu_tests_that_cannot_be_collected_are_no_evidence(tmp_path: Path) -> None:
    (tmp_path / "test_sample.py").write_text("import nonsense_that_is_not_there")
    with pytest.raises(ConvSmithError, match="did not finish"):
        gpu_tests.run(tmp_path)


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("hello\n========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n", 0),
        ("========= ERROR SUMMARY: 1 error\n", 1),
        ("========= Invalid __global__ read\n========= ERROR SUMMARY: 12 errors\n", 12),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0),
        ("========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)\n", 3),
    ],
)
def test_the_sanitizers_verdict(output: str, found: int) -> None:
    assert sanitizer.verdict(output) == found


def test_no_verdict_is_not_a_clean_one() -> None:
    with pytest.raises(ConvSmithError, match=r"no verdict(.|\n)*Device not supported"):
        sanitizer.verdict("========= Error: Device not supported\n")


FAKE_SANITIZER = """#!{python}
import os, subprocess, sys
assert os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
assert os.environ["CONVSMITH_NO_COMPILE"] == "1"
tool = sys.argv[sys.argv.index("--tool") + 1]
status = subprocess.run(sys.argv[3:]).returncode
if tool == "racecheck":
    print("========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)")
else:
    print("========= ERROR SUMMARY: 0 errors")
sys.exit(status)
"""


@pytest.fixture
def fake_sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compute-sanitizer on PATH that runs the script and finds two races."""
    program = tmp_path / "compute-sanitizer"
    program.write_text(FAKE_SANITIZER.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def test_every_tool_watches_the_script(fake_sanitizer: Path) -> None:
    script = fake_sanitizer / "script.py"
    script.write_text("print('works')")
    assert sanitizer.run(script) == {"memcheck": 0, "racecheck": 2, "synccheck": 0}


def test_a_script_that_fails_is_no_evidence(fake_sanitizer: Path) -> None:
    script = fake_sanitizer / "script.py"
    script.write_text("raise SystemExit('wrong results')")
    with pytest.raises(ConvSmithError, match=r"status 1(.|\n)*wrong results"):
        sanitizer.run(script)


def test_a_script_that_hangs_is_stopped(fake_sanitizer: Path) -> None:
    script = fake_sanitizer / "script.py"
    script.write_text("import time; time.sleep(60)")
    with pytest.raises(ConvSmithError, match="took more than 1 s"):
        sanitizer.run(script, seconds=1)


def test_start_up_is_measured_cold_then_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two child processes with one kernel cache."""
    caches: list[str] = []

    def child(command: list[str], *, env: dict[str, str], **options: object) -> object:
        caches.append(env["CONVSMITH_CACHE"])
        assert command[1:] == ["-m", "convsmith.bench.start_up"]
        seconds = 4.0 if len(caches) == 1 else 0.02
        times = {"first_call_s": {"forward": seconds}, "host_us": {"conv2d": 11.0}}
        return subprocess.CompletedProcess(command, 0, f"noise\n{json.dumps(times)}\n", "")

    monkeypatch.setattr(subprocess, "run", child)
    assert start_up.measure() == {
        "first_call_s": {"forward": 4.0},
        "warm_start_ms": {"forward": 20.0},
        "host_us": {"conv2d": 11.0},
    }
    assert len(set(caches)) == 1


def test_a_failed_child_is_no_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "Traceback: no nvcc")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(ConvSmithError, match=r"start-up failed(.|\n)*no nvcc"):
        start_up.measure()


@pytest.mark.gpu
def test_start_up_on_a_gpu() -> None:
    times = start_up.measure()
    directions = {direction.value for direction in Direction}
    assert set(times["first_call_s"]) == set(times["warm_start_ms"]) == directions
    assert max(times["first_call_s"].values()) < 60
    assert max(times["warm_start_ms"].values()) < 1e3 * min(times["first_call_s"].values())
    assert set(times["host_us"]) == {
        f"{name}, {mode}"
        for name in (f"conv2d on {direct.NAME}", "conv2d on torch", "F.conv2d")
        for mode in ("inference", "training")
    }
    assert 1 < min(times["host_us"].values()) <= max(times["host_us"].values()) < 1000
