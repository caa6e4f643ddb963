"""The test material that PyTorch's wheel carries."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any
from unittest import mock

import torch


def internal(name: str) -> Any:
    """A module of torch.testing._internal, without what importing it does to the process."""
    # It would forbid setting the switches in torch.backends, which other tests do.
    with mock.patch.object(torch.backends, "disable_global_flags"):
        return importlib.import_module(f"torch.testing._internal.{name}")


@cache
def opinfo(function: str = "conv2d") -> Any:
    """PyTorch's description of a function of F: samples, error inputs, how to check gradients."""
    operators = internal("common_methods_invocations").op_db
    return next(op for op in operators if op.name == f"nn.functional.{function}")


def samples(
    device: str, dtype: torch.dtype, requires_grad: bool = False, function: str = "conv2d"
) -> list[Any]:
    """OpInfo's sample inputs."""
    return list(opinfo(function).sample_inputs(device, dtype, requires_grad=requires_grad))


def tensors_of(sample: Any) -> list[Any]:
    """input, weight, bias (or None)."""
    return [sample.input, *sample.args]
