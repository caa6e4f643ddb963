"""Every kernel compiles for old and new GPUs, and keeps its registers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from convsmith.bench.suites import CORE, Layer, Layout
from convsmith.kernels import depthwise, direct, implicit_gemm
from convsmith.kernels.source import KernelSource
from convsmith.spec import ConvSpec, Direction, Precision

pytestmark = pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="needs nvcc on the PATH to compile CUDA"
)

# Bytes of spilled registers allowed of a kernel; those not named may spill nothing. Spilled are
# counters and addresses that a thread needs once for each tile, outside of the loops that multiply;
# with more registers a multiprocessor would hold fewer threads.
SPILLS = {
    "depthwise_grad_weight_float32_3x3_s1x1_p1x1_d1x1": 48,  # four channels a group
    "depthwise_forward_float32_3x3_s1x1_p1x1_d1x1": 12,  # likewise
    "depthwise_grad_input_float32_3x3_s1x1_p1x1_d1x1": 16,  # likewise
    "depthwise_grad_weight_float32_31x31_s1x1_p15x15_d1x1": 16,
    "depthwise_grad_input_float32_3x3_s2x2_p1x1_d1x1": 28,
    "depthwise_grad_input_bfloat16_3x3_s1x1_p0x0_d1x1": 44,
}

# Layers of the core suite that between them reach all of the depthwise family's device code.
DEPTHWISE = (
    ("kb82", Precision.FLOAT32, Layout.NCHW),
    ("kb82", Precision.BFLOAT16, Layout.NCHW),
    ("kb82", Precision.FLOAT32, Layout.NHWC),
    ("kb85", Precision.FLOAT16, Layout.NCHW),
    ("mbv2_dw3s2", Precision.FLOAT32, Layout.NCHW),
    ("convnext_dw7", Precision.FLOAT32, Layout.NCHW),
    ("resnext_g32", Precision.FLOAT32, Layout.NCHW),
    ("replk_dw31", Precision.FLOAT32, Layout.NCHW),
)


# Likewise of the implicit_gemm family, with the bytes that each may spill: counters and addresses
# again, and in the float32 class, whose sums and products fill the registers, some of a stage's.
IMPLICIT_GEMM = (
    ("kb55", Direction.FORWARD, Precision.TF32, 0),
    ("kb55", Direction.FORWARD, Precision.FLOAT32, 16),  # copied by runs
    ("kb55", Direction.GRAD_INPUT, Precision.FLOAT32, 0),  # five products
    ("kb50", Direction.FORWARD, Precision.TF32, 0),  # few channels
    ("kb55", Direction.FORWARD, Precision.FLOAT16, 0),
    ("kb86", Direction.GRAD_INPUT, Precision.FLOAT32, 0),  # copied by runs
    ("rn50_l2_3x3s2", Direction.FORWARD, Precision.FLOAT32, 0),
    ("rn50_stem", Direction.GRAD_INPUT, Precision.TF32, 0),  # phases that share blocks
    ("rn50_stem", Direction.GRAD_INPUT, Precision.FLOAT32, 36),
    ("rn50_l2_3x3s2", Direction.GRAD_INPUT, Precision.FLOAT32, 44),  # row phases apart
    ("kb55", Direction.GRAD_WEIGHT, Precision.TF32, 24),
    ("kb55", Direction.GRAD_WEIGHT, Precision.FLOAT32, 374),
    ("kb55", Direction.GRAD_WEIGHT, Precision.BFLOAT16, 16),
    ("kb62", Direction.GRAD_WEIGHT, Precision.TF32, 236),  # fifteen units
    ("kb63", Direction.GRAD_WEIGHT, Precision.FLOAT32, 0),
    ("kb86", Direction.GRAD_WEIGHT, Precision.TF32, 0),
    ("rn50_l2_3x3s2", Direction.GRAD_WEIGHT, Precision.TF32, 8),
    ("rn50_stem", Direction.GRAD_WEIGHT, Precision.TF32, 0),  # few channels
    ("kb50", Direction.GRAD_WEIGHT, Precision.FLOAT32, 294),  # likewise, and 33 units
)
LAYERS = {layer.name: layer for layer in CORE}


def sources() -> list[KernelSource]:
    found = direct.specialisations()
    for name, precision, layout in DEPTHWISE:
        for direction in Direction:
            spec = LAYERS[name].spec(direction, precision, layout)
            found.append(depthwise.source(spec, depthwise.configure(spec, multiprocessors=132)))
    return found


@pytest.mark.parametrize("architecture", ["80", "90a"])
@pytest.mark.parametrize("source", sources(), ids=lambda source: source.name)
def test_compiles_and_spills_nothing_new(
    source: KernelSource, architecture: str, tmp_path: Path
) -> None:
    report = compiled(source, architecture, tmp_path)
    assert spilled(report) <= SPILLS.get(source.name, 0), report


@pytest.mark.parametrize(("layer", "direction", "precision", "most"), IMPLICIT_GEMM)
def test_tensor_cores_are_kept_busy(
    layer: str, direction: Direction, precision: Precision, most: int, tmp_path: Path
) -> None:
    """ptxas warns where it has to wait for each product before it begins the next one."""
    spec = LAYERS[layer].spec(direction, precision, Layout.NCHW)
    report = compiled_for_an_h100(spec, tmp_path)
    assert "wgmma" not in report, report
    assert spilled(report) <= most, report


@pytest.mark.parametrize(
    ("channels", "filters", "kernel"), [(12, 512, 4), (16, 96, 7), (24, 512, 3), (32, 256, 5)]
)
def test_blocks_of_several_filters_have_registers_for_them(
    channels: int, filters: int, kernel: int, tmp_path: Path
) -> None:
    """With 16 taps and 128 filters they spilled 1538 bytes, and took 3.7 times as long."""
    layer = Layer("wide", (16, channels, 96, 96), filters, (kernel, kernel), padding=(1, 1))
    spec = layer.spec(Direction.GRAD_WEIGHT, Precision.TF32, Layout.NCHW)
    report = compiled_for_an_h100(spec, tmp_path)
    assert spilled(report) <= 400, report


def compiled_for_an_h100(spec: ConvSpec, folder: Path) -> str:
    """What nvcc says of the implicit_gemm that runs ``spec`` there."""
    source = implicit_gemm.source(spec, implicit_gemm.configure(spec, multiprocessors=132))
    return compiled(source, "90a", folder)


def compiled(source: KernelSource, architecture: str, folder: Path) -> str:
    """What nvcc says of a kernel's registers."""
    file = folder / f"{source.name}.cu"
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
    return done.stderr


def spilled(report: str) -> int:
    """Bytes of registers that a kernel stores elsewhere."""
    return sum(map(int, re.findall(r"(\d+) bytes spill stores", report)))
