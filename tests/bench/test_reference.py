"""The float64 reference, held against PyTorch's own float64 convolution on the CPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from convsmith.bench import reference
from convsmith.bench.suites import Layer, Layout
from convsmith.spec import Direction, Precision

LAYERS = [
    Layer("dense", (3, 6, 9, 8), 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    Layer("grouped", (2, 6, 7, 7), 9, (3, 3), padding=(1, 1), groups=3),
    Layer("depthwise", (2, 5, 8, 6), 5, (2, 3), stride=(1, 2), groups=5),
    Layer("multiplier", (2, 4, 6, 6), 12, (3, 3), padding=(2, 0), groups=4),
    Layer("pointwise", (4, 3, 5, 6), 7, (1, 1)),
]


def operands(layer: Layer, direction: Direction) -> tuple[Tensor, Tensor]:
    """Random float32 operands in the order that the reference takes them."""
    image, weight = torch.randn(layer.input_shape), torch.randn(layer.weight_shape)
    upstream = torch.randn(layer.output_shape)
    return {
        Direction.FORWARD: (image, weight),
        Direction.GRAD_INPUT: (upstream, weight),
        Direction.GRAD_WEIGHT: (upstream, image),
    }[direction]


def by_pytorch(layer: Layer, direction: Direction, first: Tensor, second: Tensor) -> Tensor:
    """The same result by PyTorch's float64 convolution."""
    numbers = (layer.stride, layer.padding, layer.dilation, layer.groups)
    first, second = first.double(), second.double()
    if direction is Direction.FORWARD:
        return torch.nn.functional.conv2d(first, second, None, *numbers)
    if direction is Direction.GRAD_INPUT:
        return torch.nn.grad.conv2d_input(layer.input_shape, second, first, *numbers)
    return torch.nn.grad.conv2d_weight(second, layer.weight_shape, first, *numbers)


def assert_equal_to_pytorch(layer: Layer, direction: Direction) -> None:
    spec = layer.spec(direction, Precision.FLOAT32, Layout.NCHW)
    first, second = operands(layer, direction)
    expected = by_pytorch(layer, direction, first, second)
    torch.testing.assert_close(reference.compute(spec, first, second), expected)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_it_agrees_with_pytorch(layer: Layer, direction: Direction) -> None:
    assert_equal_to_pytorch(layer, direction)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_parts_of_a_batch_make_up_the_whole(
    layer: Layer, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "PART_ELEMENTS", 1)
    spec = layer.spec(direction, Precision.FLOAT32, Layout.NCHW)
    assert len(list(reference.image_parts(spec))) == layer.input_shape[0]
    assert_equal_to_pytorch(layer, direction)


@settings(max_examples=60)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    channels=st.integers(1, 3),
    filters=st.integers(1, 3),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    direction=st.sampled_from(Direction),
)
def test_any_convolution(
    batch: int,
    groups: int,
    channels: int,
    filters: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    direction: Direction,
) -> None:
    layer = Layer(
        "drawn",
        (batch, groups * channels, *size),
        groups * filters,
        kernel,
        stride,
        padding,
        dilation,
        groups,
    )
    assume(min(layer.output_shape) > 0)
    assert_equal_to_pytorch(layer, direction)
