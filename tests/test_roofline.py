"""Floors: the larger of the two times, at the rate of the unit that does the work."""

from __future__ import annotations

import math

import pytest

from convsmith.bench.suites import CORE, Layer, Layout
from convsmith.roofline import MEASURED, Ceilings, estimate, floor_ms, operation_rate
from convsmith.spec import Direction, Precision

H200 = MEASURED["NVIDIA H200"]
LAYERS = {layer.name: layer for layer in CORE}

# Milliseconds on an H200, worked out by hand from the ceilings and each layer's size.
FLOORS_TF32 = {
    "kb50": 0.1316,
    "kb55": 1.499,
    "kb56": 1.42,
    "kb63": 2.267,
    "kb82": 0.5035,
    "kb84": 2.01,
    "kb87": 3.033,
    "rn50_stem": 0.05746,
    "rn50_l4_3x3": 0.03607,
    "rn50_l3_1x1": 0.01603,
    "unet_256": 0.2065,
    "deeplab_dil12": 0.09718,
    "superres_b1": 0.3726,
    "small_b1": 0.0006499,
    "resnext_g32": 0.04838,  # four channels a group: memory
    "convnext_dw7": 0.03707,  # depthwise: 1.888 GFLOP at the float32 rate
    "replk_dw31": 0.4846,  # depthwise: 24.69 GFLOP at the float32 rate
}
FLOORS_FLOAT32 = {
    "kb55": 614.9 / (760.2 / 3),
    "kb62": 377.5 / (760.2 / 3),
    "kb87": 3.033,
    "kb82": 0.5035,
    "convnext_dw7": 0.03707,
    "replk_dw31": 0.4846,
}


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("name", FLOORS_TF32)
def test_floors_in_the_tf32_class(name: str, direction: Direction) -> None:
    spec = LAYERS[name].spec(direction, Precision.TF32, Layout.NCHW)
    assert floor_ms(spec, H200) == pytest.approx(FLOORS_TF32[name], rel=1e-3)


@pytest.mark.parametrize("name", FLOORS_FLOAT32)
def test_floors_in_the_float32_class(name: str) -> None:
    spec = LAYERS[name].spec(Direction.FORWARD, Precision.FLOAT32, Layout.NCHW)
    assert floor_ms(spec, H200) == pytest.approx(FLOORS_FLOAT32[name], rel=1e-3)


@pytest.mark.parametrize(
    ("precision", "rate"),
    [
        (Precision.FLOAT16, H200.fp16_TFLOPs),
        (Precision.BFLOAT16, H200.bf16_TFLOPs),
        (Precision.TF32, H200.tf32_TFLOPs),
        (Precision.FLOAT32, H200.fp16_TFLOPs / 3),
    ],
)
@pytest.mark.parametrize(("groups", "narrow"), [(1, False), (4, False), (8, True), (32, True)])
def test_the_unit_that_does_the_work(
    precision: Precision, rate: float, groups: int, narrow: bool
) -> None:
    """32 channels: 8 in each of four groups are for tensor cores, 4 and 1 are not."""
    spec = Layer("any", (1, 32, 9, 9), 32, (3, 3), groups=groups).spec(
        Direction.FORWARD, precision, Layout.NCHW
    )
    assert operation_rate(spec, H200) == (H200.fp32_TFLOPs if narrow else rate)


def test_a_first_layer_of_three_channels_is_dense() -> None:
    spec = LAYERS["rn50_stem"].spec(Direction.FORWARD, Precision.TF32, Layout.NCHW)
    assert operation_rate(spec, H200) == H200.tf32_TFLOPs


def test_half_precision_moves_half_the_bytes() -> None:
    slow_memory = Ceilings(1e-3, 1e6, 1e6, 1e6, 1e6)
    full, half = (
        floor_ms(LAYERS["kb55"].spec(Direction.FORWARD, precision, Layout.NCHW), slow_memory)
        for precision in (Precision.FLOAT32, Precision.FLOAT16)
    )
    assert full == pytest.approx(2 * half)


def test_the_estimate_of_an_h200_is_near_its_measurement() -> None:
    guess = estimate((9, 0), 132, clock_hz=1.98e9, memory_bytes_per_second=4.917e12)
    for name in ("copy_TBps", "fp32_TFLOPs", "tf32_TFLOPs", "fp16_TFLOPs", "bf16_TFLOPs"):
        assert getattr(guess, name) == pytest.approx(getattr(H200, name), rel=0.1), name


@pytest.mark.parametrize("capability", [(5, 0), (7, 0), (7, 2), (7, 5), (8, 7), (9, 0), (99, 1)])
def test_every_gpu_has_an_estimate(capability: tuple[int, int]) -> None:
    guess = estimate(capability, 40)
    rates = (guess.copy_TBps, guess.fp32_TFLOPs, guess.tf32_TFLOPs, guess.fp16_TFLOPs)
    assert all(rate > 0 and math.isfinite(rate) for rate in rates)
    assert guess.fp32_TFLOPs <= guess.tf32_TFLOPs <= guess.fp16_TFLOPs


def test_a_gpu_without_tf32_runs_it_as_float32() -> None:
    guess = estimate((7, 5), 40)
    assert guess.tf32_TFLOPs == guess.bf16_TFLOPs == guess.fp32_TFLOPs < guess.fp16_TFLOPs
