"""ConvSpec: sizes, layouts and counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convsmith.spec import (
    ConvSpec,
    Direction,
    Precision,
    channels_last_strides,
    contiguous_strides,
    extent,
    follows_channels_last,
    precision_of,
    strides_like_channels_last,
)

sizes = st.integers(1, 4)


def of(
    x: torch.Tensor, w: torch.Tensor, direction: Direction = Direction.FORWARD, **changes: object
) -> ConvSpec:
    arguments = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, **changes}
    return ConvSpec.of(direction, x, w, False, **arguments)  # type: ignore[arg-type]


@given(st.tuples(sizes, sizes, sizes, sizes), st.permutations(range(4)))
def test_layouts_are_read_as_pytorch_reads_them(
    shape: tuple[int, int, int, int], order: list[int]
) -> None:
    """Against the layout that PyTorch gives a tensor of the same strides when it must choose."""
    permuted = torch.empty([shape[axis] for axis in order])
    x = permuted.permute([order.index(axis) for axis in range(4)])
    assert tuple(x.shape) == shape
    # A pooling keeps the layout that Tensor.suggest_memory_format reads off its input.
    pooled = torch.nn.functional.adaptive_avg_pool2d(x, (3, 3))
    like = torch.empty(pooled.shape).to(memory_format=torch.channels_last)
    if shape[1] > 1:
        assert strides_like_channels_last(x.shape, x.stride()) == (pooled.stride() == like.stride())


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 1, 1), (2, 1, 4, 5), (6, 4, 1, 1)])
def test_strides(shape: tuple[int, int, int, int]) -> None:
    x = torch.empty(shape)
    assert contiguous_strides(shape) == x.stride()
    assert channels_last_strides(shape) == x.to(memory_format=torch.channels_last).stride()
    assert extent(shape, x.stride()) == x.numel()


def test_results_follow_channels_last() -> None:
    x, w = torch.empty(2, 3, 5, 5), torch.empty(4, 3, 3, 3)
    last = x.to(memory_format=torch.channels_last)
    assert not follows_channels_last(x.dtype, x, w)
    assert follows_channels_last(x.dtype, last, w)
    assert follows_channels_last(x.dtype, x, w.to(memory_format=torch.channels_last))
    assert not follows_channels_last(torch.float64, last.double(), w)
    assert of(last, w).result_strides == channels_last_strides((2, 4, 3, 3))
    assert of(last, w, Direction.GRAD_INPUT).result_strides == last.stride()
    assert of(last, w, Direction.GRAD_WEIGHT).result_strides == channels_last_strides((4, 3, 3, 3))


def test_counts() -> None:
    spec = of(torch.empty(2, 6, 9, 11), torch.empty(4, 3, 3, 2), groups=2, stride=(2, 1))
    assert spec.output_shape == (2, 4, 4, 10)
    assert spec.operations == 2 * (2 * 4 * 4 * 10) * (3 * 3 * 2)
    assert spec.bytes_moved == 4 * (2 * 6 * 9 * 11 + 4 * 3 * 3 * 2 + 2 * 4 * 4 * 10)
    assert not spec.is_depthwise
    assert "groups 2" in str(spec)
    assert "stride 2x1" in str(spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": (0, 1)}, "stride=\\(0, 1\\)"),
        ({"padding": (0, -1)}, "padding=\\(0, -1\\)"),
        ({"dilation": (9, 1)}, "does not fit"),
        ({"groups": 5}, "groups=5"),
    ],
)
def test_no_convolution(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of(torch.empty(2, 6, 9, 11), torch.empty(4, 6, 3, 2), **changes)


def test_precision_is_pytorchs_switch() -> None:
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        assert precision_of(torch.float32) is Precision.TF32
        torch.backends.cudnn.allow_tf32 = False
        assert precision_of(torch.float32) is Precision.FLOAT32
        assert precision_of(torch.float16) is Precision.FLOAT16
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.skipif(
    not hasattr(torch.backends.cudnn, "conv"), reason="this PyTorch has allow_tf32 alone"
)
def test_precision_of_the_newer_switch() -> None:
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # reading allow_tf32 now raises
        assert precision_of(torch.float32) is Precision.FLOAT32
        torch.backends.cudnn.conv.fp32_precision = "tf32"
        assert precision_of(torch.float32) is Precision.TF32
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
