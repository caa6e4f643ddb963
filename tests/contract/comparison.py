"""Comparing ConvSmith's results with PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convsmith.spec import strides_like_channels_last


def results_and_gradients(
    function: Callable[..., Tensor], tensors: Sequence[Tensor | None], **arguments: Any
) -> list[Tensor]:
    """The output, and the gradients of a random linear function of it in every tensor."""
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*leaves, **arguments)
    wanted = [leaf for leaf in leaves if leaf is not None]
    return [output.detach(), *torch.autograd.grad(output, wanted, upstream_of(output))]


def upstream_of(output: Tensor) -> Tensor:
    """A random upstream gradient, the same for every output of one shape, in bfloat16 exactly."""
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(output.shape, generator=generator).bfloat16()
    return upstream.to(output.device, output.dtype)


def references(
    tensors: Sequence[Tensor | None],
    function: Callable[..., Tensor] = F.conv2d,
    **arguments: Any,
) -> list[Tensor]:
    """What ``function`` and its gradients are in float64, rounded to the dtype of the tensors.

    PyTorch's own results are no reference in 16 bits: on a CPU it rounds while it accumulates.
    """
    dtype = next(tensor.dtype for tensor in tensors if tensor is not None)
    exact = [None if tensor is None else tensor.double() for tensor in tensors]
    return [result.to(dtype) for result in results_and_gradients(function, exact, **arguments)]


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Equal up to rounding in their dtype; equal in shape, dtype and device; NaN where NaN is."""
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, equal_nan=True)


def result_or_words(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a call returns, or the words of the RuntimeError it raises."""
    try:
        return function(*arguments, **options)
    except RuntimeError as error:
        return str(error)


def is_channels_last(tensor: Tensor) -> bool:
    """PyTorch's own reading of a layout."""
    return strides_like_channels_last(tuple(tensor.shape), tensor.stride())
