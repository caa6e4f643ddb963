"""The direct family against float64: in the simulator, and on a GPU where there is one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from convolutions import LAYOUTS, PLAIN, Case, cases, check
from hypothesis import HealthCheck, given, settings

import convsmith
from convsmith import execute
from convsmith.bench.accuracy import Distribution
from convsmith.kernels import direct
from convsmith.spec import ConvSpec, Direction

FAMILY = "direct"


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=cases())
def test_any_convolution(device: str, case: Case) -> None:
    check(case, device)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_dtypes_and_layouts(device: str, dtype: torch.dtype, layout: str) -> None:
    check(replace(PLAIN, dtype=dtype, layout=layout), device)


@pytest.mark.parametrize("rows", [1, 8, 9, 16, 17, 32, 33, 64, 65])
def test_every_tile_and_its_edges(device: str, rows: int) -> None:
    check(replace(PLAIN, group_filters=rows, group_channels=rows), device)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {"stride": (3, 2), "dilation": (3, 2), "size": (8, 9)}, id="no-tap-in-a-phase"
        ),
        pytest.param({"size": (1, 11), "stride": (4, 1)}, id="fewer-rows-than-phases"),
        pytest.param({"stride": (7, 5), "size": (15, 16)}, id="stride-beyond-the-filter"),
        pytest.param({"stride": (2, 4), "dilation": (2, 2), "padding": (2, 3)}, id="common-factor"),
        pytest.param({"kernel_size": (9, 1), "padding": (4, 0)}, id="tall-filter"),
        pytest.param({"kernel_size": (2, 2), "padding": (6, 7)}, id="mostly-padding"),
        pytest.param({"kernel_size": (11, 11), "size": (12, 11), "padding": (2, 5)}, id="11x11"),
        pytest.param({"group_channels": 1, "group_filters": 1, "groups": 6}, id="depthwise"),
        pytest.param({"group_channels": 1, "group_filters": 3, "groups": 4}, id="multiplier"),
        pytest.param({"group_channels": 40, "batch": 1}, id="several-promotions"),
    ],
)
def test_awkward_geometry(device: str, changes: dict[str, object]) -> None:
    check(replace(PLAIN, **changes), device)


def test_weight_gradient_in_parts_is_exact_and_repeatable(device: str) -> None:
    """Enough positions that the terms are cut up and their partial sums added."""
    case = replace(PLAIN, size=(45, 41), group_channels=2, group_filters=3)
    x, w, _ = case.tensors(device)
    spec = ConvSpec.of(Direction.GRAD_WEIGHT, x, w, True, *case.geometry)
    assert direct.configure(spec, multiprocessors=4).splits > 1
    check(case, device)
    grad = torch.randn(spec.output_shape).to(device)
    first, second = (execute.weight_gradient(grad, x, w, *case.geometry, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_inf_and_nan_reach_just_their_outputs(device: str, value: float) -> None:
    x, w, b = PLAIN.tensors(device)
    x[1, 2, 4, 5] = value
    y = execute.forward(x, w, b, *PLAIN.geometry)
    expected = torch.conv2d(x.double(), w.double(), b.double(), *PLAIN.geometry)
    touched = torch.zeros_like(y, dtype=torch.bool)
    touched[1, :, 3:6, 4:7] = True
    assert torch.equal(~torch.isfinite(y), touched)
    torch.testing.assert_close(y[touched].double(), expected[touched], equal_nan=True)


def test_long_sums_err_less_than_one_chain_of_additions() -> None:
    """Sums are two-level: their rms error is under half that of adding term after term."""
    x, w = torch.randn(1, 64, 9, 9), torch.randn(64, 64, 9, 9)
    with convsmith.simulator():
        y = execute.forward(x, w, None, (1, 1), (0, 0), (1, 1), 1).flatten()
    terms, filters = x.flatten(), w.flatten(1)
    chain = torch.zeros_like(y)
    for index in range(terms.numel()):
        chain += filters[:, index] * terms[index]
    exact = filters.double() @ terms.double()
    assert (y - exact).square().mean() <= (chain - exact).square().mean() / 4


def test_input_gradients_of_several_taps_err_as_little_as_cudnns(device: str) -> None:
    """0.6e-7 in rms, and with sums of 32 terms 0.9e-7, of which the largest exceed cuDNN's."""
    torch.manual_seed(3)
    shapes = (2, 13, 29, 31), (29, 13, 7, 7), (2, 29, 8, 13)
    x, w, dy = (Distribution.WIDE.draw(s, torch.float32, torch.device(device)) for s in shapes)
    geometry = ((3, 2), (0, 0), (1, 1), 1)
    dx = execute.input_gradient(dy, w, x, *geometry)
    exact = torch.nn.grad.conv2d_input(x.shape, w.double(), dy.double(), *geometry)
    assert (dx - exact).square().mean().sqrt() < 7e-8 * exact.square().mean().sqrt()


def test_a_hundred_geometries_need_a_handful_of_compilations() -> None:
    names = {
        direct.source(spec, direct.configure(spec, 132)).name
        for size in range(8, 18)
        for kernel in range(1, 6)
        for stride in (1, 2)
        for spec in [
            ConvSpec.of(
                Direction.FORWARD,
                torch.empty(1, 64, size, size),
                torch.empty(128, 64, kernel, kernel),
                False,
                (stride, stride),
                (0, 0),
                (1, 1),
                1,
            )
        ]
    }
    assert names == {"direct_forward_float32_64"}
