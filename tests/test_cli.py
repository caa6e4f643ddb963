"""The command line: what it passes on, what it prints, and its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convsmith import __main__, demo, doctor
from convsmith.bench import command
from convsmith.bench.contestants import Peer
from convsmith.bench.selections import Selection
from convsmith.bench.suites import DIRECTIONS, Layout
from convsmith.doctor import Finding
from convsmith.errors import ConvSmithError
from convsmith.jit import cache
from convsmith.kernelbench import check as check_module
from convsmith.kernelbench.report import Report, Row, Verdict
from convsmith.spec import Direction, Precision

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls the command line: its exit status, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convsmith", *map(str, arguments)])
        status = __main__.main()
        return status, *capsys.readouterr()

    return call


def report_with(verdict: Verdict) -> Report:
    """A report of one row."""
    row = Row("randn", verdict, "errors as PyTorch's", "[markup] is text")
    return Report(Path("p.py"), Path("s.py"), "a device", (row,), ("A note.",), 1.5)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `check` was called with; set its "verdict" to choose its answer."""
    seen: dict[str, Any] = {"verdict": Verdict.RIGHT}

    def check(problem: Path, solution: Path, **options: Any) -> Report:
        options.pop("progress")("a trial")
        seen.update(options, problem=problem, solution=solution)
        return report_with(seen["verdict"])

    monkeypatch.setattr(check_module, "check", check)
    return seen


@pytest.mark.parametrize(
    ("verdict", "status"), [(Verdict.RIGHT, 0), (Verdict.WRONG, 1), (Verdict.UNKNOWN, 2)]
)
def test_the_verdict_of_check_is_its_exit_status(
    run: Run, checked: dict[str, Any], verdict: Verdict, status: int
) -> None:
    checked["verdict"] = verdict
    ended, output, _ = run("check", "p.py", "s.py")
    assert ended == status
    assert "[markup] is text" in output
    assert report_with(verdict).sentence in output


def test_check_passes_its_options_on(run: Run, checked: dict[str, Any]) -> None:
    run("check", "p.py", "s.py", "--simulate", "--time-limit", "30")
    assert checked["problem"] == Path("p.py")
    assert checked["solution"] == Path("s.py")
    assert checked["simulate"] is True
    assert checked["time_limit"] == 30


def test_time_limits_agree(run: Run, checked: dict[str, Any]) -> None:
    """The command's default is the function's."""
    run("check", "p.py", "s.py")
    assert checked["time_limit"] == check_module.DEFAULT_TIME_LIMIT


def test_json_is_all_that_check_prints(run: Run, checked: dict[str, Any]) -> None:
    checked["verdict"] = Verdict.WRONG
    status, output, _ = run("check", "p.py", "s.py", "--json")
    assert json.loads(output)["exit_status"] == status == 1


def test_export_writes_a_file_and_does_not_overwrite_it(
    run: Run, tmp_path: Path, root: Path
) -> None:
    problem = root / "examples" / "kernelbench" / "87_pointwise.py"
    solution = tmp_path / "new.py"
    status, output, _ = run("export", problem, "-o", solution)
    assert status == 0
    assert output.splitlines()[0] == f"wrote {solution}"
    solution.write_text("mine")
    status, _, error = run("export", problem, "-o", solution)
    assert status == 2
    assert "--force" in error
    assert solution.read_text() == "mine"
    assert run("export", problem, "-o", solution, "--force")[0] == 0
    assert "class ModelNew" in solution.read_text()


def test_an_error_that_convsmith_explains_is_one_message(run: Run, tmp_path: Path) -> None:
    missing = tmp_path / "missing.py"
    status, output, error = run("export", missing, "-o", tmp_path / "new.py")
    assert status == 2
    assert output == ""
    assert error.startswith("convsmith: ")
    assert str(missing) in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("frobnicate", "frobnicate"),
        ("check only_one.py", "solution"),
        ("check p.py s.py --time-limit 0", "--time-limit"),
        ("bench --directions sideways", "sideways"),
        ("bench --precisions float64", "float64"),
        ("bench --layouts nwhc", "nwhc"),
        ("bench --against nobody", "nobody"),
        ("bench --suite nothing", "nothing"),
        ("bench --layers kb1", "kb1"),
    ],
)
def test_a_wrong_argument_is_named(run: Run, arguments: str, named: str) -> None:
    status, output, error = run(*arguments.split())
    assert status == 2
    assert output == ""
    assert named in error
    assert "Traceback" not in error


@pytest.fixture
def benched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a benchmark was called with; it ends with status 1."""
    seen: dict[str, Any] = {}

    def bench(what: object, against: object, **options: Any) -> int:
        seen.update(options, what=what, against=against)
        return command.SOME_WRONG

    monkeypatch.setattr(command, "bench_suite", bench)
    monkeypatch.setattr(command, "bench_problems", bench)
    return seen


def test_bench_measures_the_core_suite_by_default(run: Run, benched: dict[str, Any]) -> None:
    assert run("bench")[0] == 1
    assert benched["what"] == Selection("core")
    assert benched["against"] == (Peer.TORCH, Peer.CHANNELS_LAST)
    assert benched["json"] is None
    assert benched["kernel"] is None


def test_bench_selects(run: Run, benched: dict[str, Any]) -> None:
    run(
        *("bench", "--suite", "core", "--layers", "kb55,kb56", "--directions", "forward"),
        *("--precisions", "float32, float16", "--layouts", "nhwc", "--kernel", "direct"),
        *("--against", "compile", "--json", "record.json"),
    )
    assert benched["what"] == Selection(
        "core",
        ("kb55", "kb56"),
        (Direction.FORWARD,),
        (Precision.FLOAT32, Precision.FLOAT16),
        (Layout.NHWC,),
    )
    assert benched["against"] == (Peer.TORCH, Peer.COMPILE)
    assert benched["json"] == Path("record.json")
    assert benched["kernel"] == "direct"


def test_bench_measures_problem_files(run: Run, benched: dict[str, Any]) -> None:
    run("bench", "a.py", "b.py", "--precisions", "tf32")
    assert benched["what"] == [Path("a.py"), Path("b.py")]
    assert benched["precisions"] == (Precision.TF32,)


def test_all_directions_are_the_default_of_bench(run: Run, benched: dict[str, Any]) -> None:
    run("bench", "--suite", "core")
    assert benched["what"].directions == DIRECTIONS


def test_doctor_shows_every_finding(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [Finding("GPU", "ok", "[H200]"), Finding("ninja", "warning", "old", "renew it")]
    monkeypatch.setattr(doctor, "diagnose", lambda: findings)
    status, output, _ = run("doctor")
    assert status == 0
    assert "[H200]" in output
    assert "renew it" in output


def test_doctor_says_where_kernels_cannot_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [Finding("GPU", "missing", "none", "get one")]
    monkeypatch.setattr(doctor, "diagnose", lambda: findings)
    status, output, _ = run("doctor")
    assert status == 1
    assert "cannot run" in output


def test_cache_is_listed_and_cleared(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONVSMITH_CACHE", str(tmp_path / "kernels"))

    def build(folder: Path) -> cache.Build:
        (folder / "kernel.so").write_bytes(bytes(2048))
        return cache.Build("direct", "sm_90", "kernel.so", "nvcc", {})

    assert "0 in all" in run("cache", "list")[1]
    cache.find_or_build("direct_0123", build)
    status, output, _ = run("cache", "list")
    assert status == 0
    assert "direct_0123" in output
    assert "sm_90" in output
    assert f"{tmp_path / 'kernels'}: 1 in all" in output
    assert run("cache", "clear")[0] == 0
    assert cache.list_entries() == []


def child(code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a new Python."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=os.environ
    )


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_its_packages_one_line_says_what_to_install(package: str) -> None:
    ended = child(
        f"import sys; sys.modules[{package!r}] = None\n"
        "from convsmith.__main__ import main; sys.exit(main())"
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        f"convsmith: the command line needs {package}: pip install 'convsmith[cli]'"
    ]


def test_another_missing_package_is_not_blamed_on_the_extra() -> None:
    ended = child(
        "import sys; sys.modules['convsmith.doctor'] = None; sys.argv = ['convsmith', 'doctor']\n"
        "from convsmith.__main__ import main; sys.exit(main())"
    )
    assert "convsmith[cli]" not in ended.stderr
    assert "convsmith.doctor" in ended.stderr


def test_help_waits_for_no_part_of_the_work() -> None:
    ended = child(
        "import sys; sys.argv = ['convsmith', '--help']\n"
        "from convsmith.__main__ import main; status = main()\n"
        "assert 'convsmith.cli' in sys.modules\n"
        "for part in ('kernelbench', 'doctor', 'demo', 'bench.command'):\n"
        "    assert 'convsmith.' + part not in sys.modules, part\n"
        "sys.exit(status)"
    )
    assert ended.returncode == 0, ended.stderr
    for name in ("check", "export", "bench", "doctor", "cache", "demo"):
        assert f"{name} " in ended.stdout


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, checked: dict[str, Any]) -> dict[str, Any]:
    """A demo whose parts are quick: what they were called with, and "gpu" to choose."""
    seen: dict[str, Any] = {"gpu": False, "verdicts": [], "exported": [], "measured": []}

    def diagnose() -> list[Finding]:
        state = Finding("GPU", "ok", "one") if seen["gpu"] else Finding("GPU", "missing", "none")
        return [Finding("ninja", "ok", "here"), state]

    def export(problem: Path, output: Path) -> None:
        assert problem.is_file()
        seen["exported"].append(problem.name)
        output.write_text("line\n" * 7)

    def check(problem: Path, solution: Path, **options: Any) -> Report:
        seen["simulate"] = options["simulate"]
        verdicts = seen["verdicts"]
        return report_with(verdicts.pop(0) if verdicts else Verdict.RIGHT)

    def bench(problems: list[Path], against: object) -> int:
        seen["measured"] = [problem.name for problem in problems]
        return 0

    monkeypatch.setattr(demo, "diagnose", diagnose)
    monkeypatch.setattr(demo, "export", export)
    monkeypatch.setattr(demo, "check", check)
    monkeypatch.setattr(demo.command, "bench_problems", bench)
    return seen


def test_demo_without_a_gpu_simulates_and_says_so(run: Run, pretended: dict[str, Any]) -> None:
    status, output, _ = run("demo")
    assert status == 0
    assert pretended["simulate"] is True
    assert pretended["measured"] == []
    assert pretended["exported"] == list(demo.PROBLEMS)
    assert "GPU: none" in output
    assert "simulator" in output
    assert " ms" not in output


def test_demo_on_a_gpu_measures(run: Run, pretended: dict[str, Any]) -> None:
    pretended["gpu"] = True
    status, output, _ = run("demo")
    assert status == 0
    assert pretended["simulate"] is False
    assert pretended["measured"] == list(demo.PROBLEMS)
    assert "simulator" not in output


def test_demo_fails_when_one_check_does(run: Run, pretended: dict[str, Any]) -> None:
    pretended["verdicts"] = [Verdict.RIGHT, Verdict.WRONG, Verdict.RIGHT]
    status, output, _ = run("demo")
    assert status == 1
    assert "errors as PyTorch's" in output  # the table of the failed check
    assert len(pretended["exported"]) == 3


def test_demo_without_examples_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "site" / "convsmith" / "demo.py"))
    with pytest.raises(ConvSmithError, match="install ConvSmith again"):
        demo.examples()
