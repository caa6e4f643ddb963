"""Predicted times against what an H100 was measured to take, where a model has something to miss.

The planner weighs predictions, so each of these once made it choose the slower kernel, or could.
"""

from __future__ import annotations

import pytest

from convsmith import pytorch_times
from convsmith.bench.suites import SUITES, Layout
from convsmith.kernels.families import FAMILIES
from convsmith.planner import REQUIRED_GAIN
from convsmith.roofline import MEASURED
from convsmith.spec import ConvSpec, Direction, Precision

H100 = MEASURED["NVIDIA H100 80GB HBM3"]
MULTIPROCESSORS = 132
LAYERS = {layer.name: layer for layers in SUITES.values() for layer in layers}


def spec(layer: str, direction: str, precision: str) -> ConvSpec:
    return LAYERS[layer].spec(Direction(direction), Precision(precision), Layout.NCHW)


def predicted_ms(family: str, wanted: ConvSpec) -> float:
    configuration = FAMILIES[family].configure(wanted, MULTIPROCESSORS)
    return FAMILIES[family].predicted_ms(wanted, configuration, H100, MULTIPROCESSORS)


# Layer, direction and class; the family; its milliseconds and PyTorch's.
FEW_BLOCKS = [
    ("c_b8_c32k64_1x2000_k1x2_d1x8_p0", "forward", "tf32", "direct", 0.0155, 0.0139),
    ("c_b8_c32k64_1x2000_k1x2_d1x8_p0", "grad_input", "tf32", "direct", 0.0202, 0.0249),
    ("c_b1_c3k64_224_k7_s2", "forward", "tf32", "direct", 0.0224, 0.0222),
    ("c_b3_c5k7_113_k2", "forward", "tf32", "direct", 0.0106, 0.0120),
    ("c_b3_c5k7_113_k2", "grad_weight", "tf32", "direct", 0.0543, 0.0445),
    ("c_b16_c32k64_127_k5_s3", "forward", "float32", "direct", 0.1220, 0.0976),
    ("c_b1_c1k64_572_k3_p0", "grad_input", "tf32", "depthwise", 0.1209, 0.1082),
    ("dw_b4_c30_57_k15_d2", "forward", "float32", "depthwise", 0.0274, 0.0452),
    ("dw_b8_c96_28_k21", "forward", "float32", "depthwise", 0.0324, 0.1279),
]
TAPS_SPREAD_OVER_THREADS = [
    ("dw_b16_c80_45_k11_p0", "grad_weight", "float32", "depthwise", 0.0668, 0.280),
    ("dw_b32_c1024_7_k13", "grad_weight", "float32", "depthwise", 0.1284, 1.149),
    ("dw_b4_c30_57_k15_d2", "grad_weight", "float32", "depthwise", 0.0733, 0.128),
    ("dw_b8_c96_28_k21", "grad_weight", "float32", "depthwise", 0.0649, 0.417),
    ("dw_b8_c256_28_k29", "grad_weight", "float32", "depthwise", 0.1845, 2.08),
    ("c_b1_c1k64_1024_k9", "grad_weight", "float32", "depthwise", 1.0706, 0.6241),
    ("dw_b2_c32_512_k9", "grad_weight", "float32", "depthwise", 0.3213, 2.3583),
    ("replk_dw31", "grad_weight", "float32", "depthwise", 0.7430, 15.9932),
]


@pytest.mark.parametrize(
    ("layer", "direction", "precision", "family", "ms", "torch_ms"),
    FEW_BLOCKS + TAPS_SPREAD_OVER_THREADS,
)
def test_own_times(
    layer: str, direction: str, precision: str, family: str, ms: float, torch_ms: float
) -> None:
    """They are told about right, and no family is preferred where PyTorch was faster."""
    wanted = spec(layer, direction, precision)
    told = predicted_ms(family, wanted)
    assert ms / 1.4 <= told <= 1.4 * ms
    if torch_ms < 0.97 * ms:
        assert told * REQUIRED_GAIN > pytorch_times.predict(wanted, H100)[0]


@pytest.mark.parametrize(
    ("layer", "direction", "precision", "torch_ms"),
    [
        # A float32 kernel, where converting takes longer than the convolution.
        ("c_b8_c32k64_1x2000_k1x2_d1x8_p0", "forward", "tf32", 0.0139),
        # Of more than nine taps, for 64 filters: less than half a tile's width is lost.
        ("c_b16_c32k64_127_k5_s3", "forward", "float32", 0.0976),
        # Several kernels, whatever there is to do.
        ("g5f5_b8_c160_29_k3_s2", "grad_input", "float32", 0.0692),
        ("c_b32_c240k60_28_k1_g3", "forward", "tf32", 0.0371),
        ("c_b8_c512k255_20_k1", "forward", "tf32", 0.0148),
        # A depthwise kernel whose filter's size is not compiled in.
        ("dw_b16_c60_113_k4_s2", "forward", "float32", 0.0754),
        # Sums that go from one small plane to the next.
        ("dw_b32_c1024_7_k13", "grad_weight", "float32", 1.1587),
        ("dw_b128_c1024_7_k3", "grad_weight", "float32", 0.2272),
    ],
)
def test_pytorchs_times(layer: str, direction: str, precision: str, torch_ms: float) -> None:
    """The best that was seen of their kind: never much more than measured, nor far below."""
    told, _ = pytorch_times.predict(spec(layer, direction, precision), H100)
    assert 0.45 * torch_ms <= told <= 1.15 * torch_ms
