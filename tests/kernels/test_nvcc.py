"""Every kernel compiles for old and new GPUs, and keeps its registers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from convsmith.kernels.families import FAMILIES
from convsmith.kernels.source import KernelSource

pytestmark = pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="needs nvcc on the PATH to compile CUDA"
)

# Bytes of spilled registers allowed of a kernel; those not named may spill nothing.
SPILLS: dict[str, int] = {}


@pytest.mark.parametrize("architecture", ["80", "90a"])
@pytest.mark.parametrize(
    "source",
    [source for family in FAMILIES.values() for source in family.specialisations()],
    ids=lambda source: source.name,
)
def test_compiles_and_spills_nothing_new(
    source: KernelSource, architecture: str, tmp_path: Path
) -> None:
    file = tmp_path / f"{source.name}.cu"
    file.write_text(source.cuda)
    done = subprocess.run(
        [
            "nvcc",
            "-std=c++17",
            "-Xptxas=-v",
            f"-gencode=arch=compute_{architecture},code=sm_{architecture}",
            "-cubin",
            f"-o={file.with_suffix('.cubin')}",
            str(file),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill stores", done.stderr)))
    assert spilled <= SPILLS.get(source.name, 0), done.stderr
