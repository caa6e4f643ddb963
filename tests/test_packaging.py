"""The wheel and the source distribution: complete, and working outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.xdist_group("packaging")  # one worker builds, once

ROOT = Path(__file__).parent.parent
NOT_SOURCES = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)
NEEDED_IN_SDIST = {
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    ".ci/run",
    ".clang-format",
    "docs/architecture.md",
    "requirements-dev.txt",
    "requirements.txt",
    "setup.py",
    "tests/conftest.py",
}


def run(command: list[str | Path], folder: Path, **environment: str) -> str:
    """Run ``command`` in ``folder``; its standard output, or a failure that shows everything."""
    child = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert child.returncode == 0, f"{command}\n{child.stdout}\n{child.stderr}"
    return child.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that is built from that sdist."""
    checkout = tmp_path_factory.mktemp("checkout") / "convsmith"
    shutil.copytree(ROOT, checkout, ignore=NOT_SOURCES)
    run([sys.executable, "-m", "build", "--no-isolation"], checkout)
    return checkout / "dist"


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    """The built wheel."""
    return next(distributions.glob("*.whl"))


def package_files() -> set[str]:
    """Every file of the package, by its path from src/."""
    source = ROOT / "src"
    return {
        path.relative_to(source).as_posix()
        for path in (source / "convsmith").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = package_files()
    assert {Path(name).suffix for name in expected} >= {".py", ".cuh", ".cpp", ".h", ".typed"}
    assert expected - names == set()


def test_the_wheel_holds_the_examples_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    examples = {path.name for path in (ROOT / "examples" / "kernelbench").glob("*.py")}
    assert examples
    assert {f"convsmith/examples/kernelbench/{name}" for name in examples} - names == set()
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_the_sdist_holds_what_make_test_needs(distributions: Path) -> None:
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {f"src/{name}" for name in package_files()}
    tests = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")}
    assert (NEEDED_IN_SDIST | sources | tests) - names == set()


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh virtual environment that holds the wheel.

    It sees this environment's packages, torch among them, but not its editable ConvSmith: a path
    added by a .pth file has its own .pth files ignored.
    """
    folder = tmp_path_factory.mktemp("venv")
    run([sys.executable, "-m", "venv", folder], folder)
    python = folder / "bin" / "python"
    run([python, "-m", "pip", "install", "--no-deps", "--no-index", wheel], folder)
    ours = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder)
    theirs = Path(torch.__file__).parents[1]
    Path(ours.strip(), "outer.pth").write_text(f"{theirs}\n")
    return folder / "bin"


def test_it_runs_from_the_wheel_and_not_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    script = "import convsmith; print(convsmith.__file__)"
    where = run([installed / "python", "-c", script], tmp_path)
    assert where.startswith(str(installed.parent))


def test_the_command_and_the_module_are_the_same(installed: Path, tmp_path: Path) -> None:
    command = run([installed / "convsmith", "--help"], tmp_path)
    module = run([installed / "python", "-m", "convsmith", "--help"], tmp_path)
    assert command == module
    assert "check" in command


SIMULATED = """
import torch, convsmith
torch.manual_seed(0)
x, w, b = torch.randn(1, 3, 7, 6), torch.randn(4, 3, 3, 2), torch.randn(4)
with convsmith.simulator():
    ours = convsmith.conv2d(x, w, b, stride=2, padding=1)
exact = torch.nn.functional.conv2d(x.double(), w.double(), b.double(), stride=2, padding=1)
print((ours - exact).abs().max().item())
"""


def test_a_simulated_convolution_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """The kernels and the simulator's own sources are in the wheel, and are found there."""
    error = float(run([installed / "python", "-c", SIMULATED], tmp_path))
    assert error < 1e-5


ONE_DEMONSTRATION = """
import sys
from convsmith import cli, demo
demo.PROBLEMS = demo.PROBLEMS[:1]
sys.argv = ["convsmith", "demo"]
sys.exit(cli.main())
"""


def test_the_demonstration_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """Export and check the first example problem, which the wheel brings along."""
    shown = run([installed / "python", "-c", ONE_DEMONSTRATION], tmp_path)
    assert "82_depthwise_square_input_square_kernel_new.py" in shown
    assert "right:" in shown


def test_doctor_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """Every part of the report is there; what it says depends on the machine."""
    child = subprocess.run(
        [installed / "python", "-m", "convsmith", "doctor"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode in (0, 1), child.stderr
    for topic in ("PyTorch", "GPU", "nvcc", "C++ compiler", "kernel cache"):
        assert topic in child.stdout
