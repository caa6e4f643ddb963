"""The digest covers what decides how a kernel runs, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from convsmith.bench.digest import PACKAGE, kernel_digest, kernel_files


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package's sources."""
    copy = tmp_path / "convsmith"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


COVERED = [path.relative_to(PACKAGE).as_posix() for path in kernel_files()]


def test_it_covers_device_code_its_host_side_the_binding_and_the_planner() -> None:
    assert {
        "kernels/direct.cuh",
        "kernels/direct.py",
        "kernels/launch.cuh",
        "kernels/stub.cu.in",
        "jit/binding.cpp",
        "planner.py",
        "choice.py",
        "trial.py",
    } <= set(COVERED)
    assert "spec.py" not in COVERED


def test_a_copy_has_the_same_digest(package: Path) -> None:
    assert kernel_digest(package) == kernel_digest()


@pytest.mark.parametrize("name", COVERED)
def test_any_change_to_a_covered_file_changes_it(package: Path, name: str) -> None:
    before = kernel_digest(package)
    with (package / name).open("a") as file:
        file.write(" ")
    assert kernel_digest(package) != before


def test_files_that_come_go_or_move_change_it(package: Path) -> None:
    digests = [kernel_digest(package)]
    header = package / "kernels" / "direct.cuh"
    (package / "kernels" / "new.cuh").write_text("")
    digests.append(kernel_digest(package))
    (package / "kernels" / "new.cuh").unlink()
    header.rename(header.with_name("renamed.cuh"))
    digests.append(kernel_digest(package))
    (package / "kernels" / "renamed.cuh").unlink()
    digests.append(kernel_digest(package))
    assert len(set(digests)) == 4


def test_text_moved_from_one_file_to_the_next_changes_it(package: Path) -> None:
    (package / "kernels" / "a.h").write_text("xy")
    (package / "kernels" / "b.h").write_text("z")
    before = kernel_digest(package)
    (package / "kernels" / "a.h").write_text("x")
    (package / "kernels" / "b.h").write_text("yz")
    assert kernel_digest(package) != before


def test_compiled_python_and_other_modules_do_not_count(package: Path) -> None:
    before = kernel_digest(package)
    cache = package / "kernels" / "__pycache__"
    cache.mkdir()
    (cache / "direct.cpython-311.pyc").write_bytes(b"anything")
    (package / "spec.py").write_text("")
    assert kernel_digest(package) == before
