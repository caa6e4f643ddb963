"""Rules of the house that no formatter or linter knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KERNELS = ROOT / "src" / "convsmith" / "kernels"
SOURCES = sorted(
    path
    for folder in ("src", "tests", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".cuh", ".cu", ".cpp", ".h"}
)
LONGEST_FILE = 600


def test_there_are_sources() -> None:
    assert len(SOURCES) > 20


def test_no_file_is_too_long_to_read_in_one_sitting() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in SOURCES}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_inline_assembly_is_only_in_kernels_ptx() -> None:
    """Device code names each PTX instruction through a function of kernels/ptx/."""
    assembly = re.compile(r"\basm\s*(volatile)?\s*\(|\b__asm__\b")
    offenders = [
        path
        for path in SOURCES
        if path.suffix != ".py" and path.parent != KERNELS / "ptx"
        if assembly.search(path.read_text())
    ]
    assert offenders == []


def kernel_families() -> list[Path]:
    """The host side of each family: the modules of kernels/ that have device code of their name."""
    return [path for path in sorted(KERNELS.glob("*.py")) if path.with_suffix(".cuh").exists()]


def test_the_direct_family_is_found() -> None:
    assert "direct" in [path.stem for path in kernel_families()]


@pytest.mark.parametrize("family", kernel_families(), ids=lambda path: path.stem)
def test_a_family_has_tests_of_its_name(family: Path) -> None:
    tests = ROOT / "tests" / "kernels"
    assert list(tests.glob(f"test_{family.stem}*.py")), f"no tests/kernels/test_{family.stem}*.py"


def test_every_launch_belongs_to_a_family() -> None:
    """A header that defines kernels (__global__) is <family>.cuh, or <family>_*.cuh beside it."""
    families = [family.stem for family in kernel_families()]
    headers = [path for path in KERNELS.glob("*.cuh") if "__global__" in path.read_text()]
    assert headers
    assert [path.name for path in headers if family_of(path.stem, families) is None] == []


def family_of(header: str, families: list[str]) -> str | None:
    return next((name for name in families if f"{header}_".startswith(f"{name}_")), None)
