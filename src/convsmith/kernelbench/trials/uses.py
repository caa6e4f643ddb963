"""Ways to use a module on the arguments of ``forward``; each returns the tensors to compare."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Named = dict[str, Tensor]
Use = Callable[[nn.Module, list[Any]], Named]
Names = Callable[[nn.Module], list[str]]

UPSTREAM_SEED = 2


class Upstream(str, Enum):
    """How the upstream gradient lies in memory."""

    CONTIGUOUS = "contiguous"
    EXPANDED = "expanded"
    CHANNELS_LAST = "channels last"


class NoGradientError(Exception):
    """No output requires a gradient."""


def outputs(value: Any) -> Named:
    """The tensors of what ``forward`` returned, by name.

    Raises:
        TypeError: there is none.
    """
    leaves = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    if not leaves:
        raise TypeError(f"forward returned {type(value).__name__} and no tensor")
    if len(leaves) == 1:
        return {"the output": leaves[0]}
    return {f"output {place}": leaf for place, leaf in enumerate(leaves)}


def forward(module: nn.Module, inputs: list[Any]) -> Named:
    """Call the module without gradients."""
    with torch.no_grad():
        return outputs(module(*inputs))


def training_step(
    names: Names,
    *,
    upstream: Upstream = Upstream.CONTIGUOUS,
    of_inputs: bool = True,
    of_parameters: bool = True,
) -> Use:
    """Forward, then backward from a random upstream gradient.

    Args:
        names: what a module's parameters are called, in their order.
        upstream: the layout of the upstream gradient.
        of_inputs, of_parameters: which gradients are asked for.
    """

    def use(module: nn.Module, inputs: list[Any]) -> Named:
        leaves = [x.detach().requires_grad_(of_inputs) if is_floating(x) else x for x in inputs]
        wanted = [parameter.requires_grad for parameter in module.parameters()]
        for parameter in module.parameters():
            parameter.grad = None
            parameter.requires_grad_(parameter.requires_grad and of_parameters)
        try:
            found = outputs(module(*leaves))
            backward(found, upstream)
        finally:
            for parameter, requires_grad in zip(module.parameters(), wanted, strict=True):
                parameter.requires_grad_(requires_grad)
        return {**found, **gradients(module, leaves, names)}

    return use


def gradients(module: nn.Module, leaves: list[Any], names: Names) -> Named:
    """The gradients that a backward pass left, of the arguments and of the parameters."""
    inputs = [x for x in leaves if is_floating(x)]
    called = ["the input"] if len(inputs) == 1 else [f"input {i}" for i in range(len(inputs))]
    found = dict(zip(called, inputs, strict=True))
    found |= zip(names(module), module.parameters(), strict=True)
    return {
        f"gradient of {name}": tensor.grad
        for name, tensor in found.items()
        if tensor.grad is not None
    }


def backward(found: Named, layout: Upstream = Upstream.CONTIGUOUS) -> None:
    """Backward from random gradients, the same for equal shapes whatever the dtype.

    Raises:
        NoGradientError: no output requires a gradient.
    """
    differentiable = [output for output in found.values() if output.requires_grad]
    if not differentiable:
        raise NoGradientError("its output does not require a gradient")
    generator = torch.Generator(differentiable[0].device).manual_seed(UPSTREAM_SEED)
    torch.autograd.backward(
        differentiable, [_upstream(output, layout, generator) for output in differentiable]
    )


def _upstream(output: Tensor, layout: Upstream, generator: torch.Generator) -> Tensor:
    shape = output.shape
    if layout is Upstream.EXPANDED:  # as the gradient of a mean over pixels is
        shape = torch.Size([*shape[:2], *[1] * (output.dim() - 2)])
    gradient = torch.randn(shape, generator=generator, device=output.device).to(output.dtype)
    if layout is Upstream.CHANNELS_LAST and output.dim() == 4:
        gradient = gradient.contiguous(memory_format=torch.channels_last)
    return gradient.expand(output.shape)


def is_floating(value: Any) -> bool:
    """Whether ``value`` is a tensor that can have a gradient."""
    return isinstance(value, Tensor) and value.is_floating_point()
