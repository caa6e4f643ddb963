"""The float64 evaluation: the right sums, the right rounding, forward and backward."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from convsmith.kernelbench.exact import (
    Exactly,
    tf32_switch,
    to_bfloat16,
    to_tf32,
    to_tf32_truncated,
)
from convsmith.spec import Precision, precision_of

floats = st.floats(width=32, allow_nan=False, allow_subnormal=False)


def tf32_by_bits(value: float) -> float:
    """Round to nearest even as hardware does, on the bits of a float32."""
    (bits,) = struct.unpack("I", struct.pack("f", value))
    if bits & 0x7F800000 == 0x7F800000:
        return value
    bits = (bits + 0xFFF + (bits >> 13 & 1)) & 0xFFFFE000
    return struct.unpack("f", struct.pack("I", bits))[0]


@given(floats)
def test_rounding_to_tf32(value: float) -> None:
    (rounded,) = to_tf32(torch.tensor([value], dtype=torch.float64)).tolist()
    expected = tf32_by_bits(value)
    if math.isinf(expected):  # float64 has no overflow here
        assert abs(rounded) in (2.0**128, math.inf)
    else:
        assert rounded == expected


@given(floats)
def test_cutting_to_tf32(value: float) -> None:
    (bits,) = struct.unpack("I", struct.pack("f", value))
    (expected,) = struct.unpack("f", struct.pack("I", bits & 0xFFFFE000))
    assert to_tf32_truncated(torch.tensor([value], dtype=torch.float64)).tolist() == [expected]


def test_infinities_and_nan_stay() -> None:
    values = torch.tensor([math.inf, -math.inf, math.nan, 0.0], dtype=torch.float64)
    for rounding in (to_tf32, to_tf32_truncated, to_bfloat16):
        torch.testing.assert_close(rounding(values), values, rtol=0, atol=0, equal_nan=True)


MODELS = {
    "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2), (2, 4, 7, 6)),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False), (1, 4, 6, 5)),
    "string padding": (nn.Conv2d(3, 2, (3, 5), padding="same"), (2, 3, 6, 7)),
    "unbatched": (nn.Conv2d(3, 2, 3), (3, 6, 7)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3, stride=2), (2, 3, 5, 4)),
    "conv1d": (nn.Conv1d(3, 4, 3), (2, 3, 9)),
    "conv3d": (nn.Conv3d(2, 3, 2), (1, 2, 4, 5, 3)),
    "several": (
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(80, 5)
        ),
        (2, 3, 7, 6),
    ),
}


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients from a fixed upstream gradient."""
    leaf = x.clone().requires_grad_()
    model.zero_grad()
    y = model(leaf)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).double())
    return [y.detach(), leaf.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("name", MODELS)
def test_sums_are_those_of_pytorch_in_float64(name: str) -> None:
    model, shape = MODELS[name]
    model = model.double()
    x = torch.randn(shape, dtype=torch.float64)
    with Exactly() as exactly:
        found = results(model, x)
    for ours, theirs in zip(found, results(model, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert exactly.terms > 0


@pytest.mark.parametrize("name", ["conv2d", "depthwise", "transposed"])
def test_operands_are_rounded_in_all_three_directions(name: str) -> None:
    model, shape = MODELS[name]
    model = model.double()
    x = torch.randn(shape, dtype=torch.float64)
    with Exactly(to_tf32):
        rounded = results(model, x)
    exact = results(model, x)
    for ours, theirs, of in zip(rounded, exact, ["y", "x", "w", "b"], strict=False):
        error = float((ours - theirs).norm() / theirs.norm())
        if of == "b":  # a sum of the upstream gradient itself
            assert error < 1e-12
        else:
            assert 2e-5 < error < 6e-4


def test_the_length_of_sums() -> None:
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    with Exactly() as exactly, torch.no_grad():
        nn.Conv2d(4, 6, 3, groups=2).double()(x)
    assert exactly.terms == 2 * 9


def test_the_switch_is_read_as_pytorch_means_it() -> None:
    with tf32_switch(False):
        assert precision_of(torch.float32) is Precision.FLOAT32
        assert not torch.backends.cudnn.allow_tf32  # readable: solutions may ask
    with tf32_switch(True):
        assert precision_of(torch.float32) is Precision.TF32
        assert torch.backends.cudnn.allow_tf32
    assert precision_of(torch.float32) is Precision.TF32
