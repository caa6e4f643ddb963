"""Autocast: by dtype and by value."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, result_or_words, upstream_of
from running import backends
from torch import nn

import convsmith

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def operands(device: str, *dtypes: torch.dtype) -> list[torch.Tensor]:
    shapes = (2, 4, 7, 6), (6, 4, 3, 2), (6,)
    return [
        torch.randn(shape).to(device, dtype).requires_grad_()
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]


@backends("operators", "simulator", "cuda")
@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_dtype(backend, dtype, target):
    """Results and gradients have the dtypes of PyTorch's: float64 stays, all else is cast."""
    tensors = operands(backend.device, dtype, dtype, dtype)
    with torch.autocast(backend.device, target):
        ours, theirs = convsmith.conv2d(*tensors), F.conv2d(*tensors)
    assert ours.dtype is theirs.dtype is (torch.float64 if dtype is torch.float64 else target)
    gradients = [torch.autograd.grad(y, tensors, upstream_of(y)) for y in (ours, theirs)]
    assert [gradient.dtype for gradient in gradients[0]] == [dtype] * 3
    rough = (
        {"rtol": 2e-2, "atol": 2e-2} if target is torch.bfloat16 else {"rtol": 1e-2, "atol": 1e-2}
    )
    torch.testing.assert_close([ours, *gradients[0]], [theirs, *gradients[1]], **rough)
    assert backend.handed_over == 0


@backends("operators", "simulator", "cuda")
@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, DTYPES, DTYPES)), ids=str)
def test_mixed_dtypes(backend, dtypes):
    """What autocast makes equal convolves; what it does not is PyTorch's error."""
    tensors = operands(backend.device, *dtypes)

    with torch.autocast(backend.device, torch.bfloat16):
        ours, theirs = (
            result_or_words(function, *tensors) for function in (convsmith.conv2d, F.conv2d)
        )
    if isinstance(theirs, str):
        assert ours == theirs
    else:
        assert ours.dtype is theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@backends("operators", "simulator", "cuda")
def test_the_other_devices_autocast_changes_nothing(backend):
    tensors = operands(backend.device, *[torch.float32] * 3)
    with torch.autocast("cpu" if backend.device == "cuda" else "cuda", torch.bfloat16):
        y = convsmith.conv2d(*tensors)
    assert y.dtype is torch.float32
    assert_close([y], [convsmith.conv2d(*tensors)])


@backends("operators", "simulator", "cuda")
def test_a_region_may_be_left_and_entered(backend):
    tensors = operands(backend.device, *[torch.float32] * 3)
    dtypes = []
    for enabled in (True, False, True, False):
        with torch.autocast(backend.device, torch.bfloat16, enabled=enabled), torch.no_grad():
            dtypes.append(convsmith.conv2d(*tensors).dtype)
    assert dtypes == [torch.bfloat16, torch.float32] * 2


@backends("operators", "simulator", "cuda")
def test_training_step(backend):
    """A model under autocast: activations in 16 bits, gradients in the parameters' float32."""

    def step(layer):
        torch.manual_seed(0)
        model = nn.Sequential(
            layer(3, 8, 3, padding=1), nn.ReLU(), layer(8, 8, 3, groups=2), nn.Flatten()
        ).to(backend.device)
        with torch.autocast(backend.device, torch.bfloat16):
            y = model(x)
            assert y.dtype is torch.bfloat16
            loss = (y.float() ** 2).mean()
        loss.backward()
        return [loss.detach(), *(parameter.grad for parameter in model.parameters())]

    x = torch.randn(2, 3, 6, 6, device=backend.device)
    ours, theirs = step(convsmith.Conv2d), step(nn.Conv2d)
    assert {result.dtype for result in ours} == {torch.float32}
    torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=5e-3)


@backends("operators", "cuda")
def test_second_derivatives_and_tangents(backend):
    tensors = [tensor.detach() for tensor in operands(backend.device, *[torch.float32] * 3)]

    def derivatives(function):
        def loss(*inner):
            return (function(*inner).float() ** 2).sum()

        with torch.autocast(backend.device, torch.bfloat16):
            tangent = torch.func.jvp(
                function, tuple(tensors), tuple(tensor.cos() for tensor in tensors)
            )
            gradient = torch.func.grad(loss, 1)(*tensors)
        return [*tangent, gradient]

    ours, theirs = derivatives(convsmith.conv2d), derivatives(F.conv2d)
    assert [result.dtype for result in ours] == [result.dtype for result in theirs]
    for our, their in zip(ours, theirs, strict=True):
        # Of the whole: single elements may cancel to next to nothing.
        assert (our - their).norm() <= 2e-2 * their.norm()
