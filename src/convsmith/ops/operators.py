"""The three operators' schemas, and what they have in common.

    T(x, w, g) = sum(g * conv2d(x, w))

is linear in each of its three tensors, and the operators are its three derivatives:

    conv2d                   dT/dg, the output,  from x and w
    conv2d_input_gradient    dT/dx,              from g and w
    conv2d_weight_gradient   dT/dw,              from g and x

A derivative of any of them is therefore one of them again: put its upstream gradient where its
result was (reverse mode), or a tangent in place of an operand (forward mode). The bias belongs to
the weight: it is added where the weight is applied, and its gradient comes with the weight's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch._ops import OpOverload

from convsmith.ops import computation
from convsmith.ops.layers import is_plain, nobody_looks_on
from convsmith.spec import Pair

# Stride, padding, dilation, groups: what every operator takes after its tensors.
Geometry = tuple[Pair, Pair, Pair, int]

# The slots of T.
INPUT, WEIGHT, OUTPUT = range(3)

# Any: torch.library carries no annotations.
LIBRARY: Any = torch.library.Library("convsmith", "DEF")  # type: ignore[no-untyped-call]
_GEOMETRY = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups"
for _schema in (
    f"conv2d(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor",
    # `input` (and `weight` in the next) gives the result its shape and memory format, no more.
    f"conv2d_input_gradient(Tensor grad_output, Tensor weight, Tensor input, {_GEOMETRY})"
    " -> Tensor",
    # The second result is the bias's gradient, and empty unless has_bias.
    f"conv2d_weight_gradient(Tensor grad_output, Tensor input, Tensor weight, {_GEOMETRY}, "
    "bool has_bias) -> (Tensor, Tensor)",
):
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


class Operator(NamedTuple):
    """One of the three.

    Attributes:
        overload: what PyTorch calls.
        compute: what it does below every layer, taking the same arguments.
        result: the slot it computes.
        operands: the slots of its first two arguments.
    """

    overload: OpOverload[..., Any]
    compute: Callable[..., Any]
    result: int
    operands: tuple[int, int]

    def place(self, result: Any, first: Any, second: Any) -> list[Any]:
        """The three tensors in the order of the slots."""
        tensors = [result] * 3
        for slot, operand in zip(self.operands, (first, second), strict=True):
            tensors[slot] = operand
        return tensors


_OPS = torch.ops.convsmith
CONV2D = Operator(_OPS.conv2d.default, computation.conv2d, OUTPUT, (INPUT, WEIGHT))
INPUT_GRADIENT = Operator(
    _OPS.conv2d_input_gradient.default, computation.input_gradient, INPUT, (OUTPUT, WEIGHT)
)
WEIGHT_GRADIENT = Operator(
    _OPS.conv2d_weight_gradient.default, computation.weight_gradient, WEIGHT, (OUTPUT, INPUT)
)


def conv2d(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """conv2d(input, weight) + bias through PyTorch's dispatcher.

    Nothing is checked: the tensors are 4-D and of a dtype and a device that ConvSmith takes, and
    the arguments describe a convolution.
    """
    return cast(Tensor, torch.ops.convsmith.conv2d(input, weight, bias, *geometry))


def solve(
    slot: int,
    tensors: Sequence[Any],
    geometry: Geometry,
    bias: Tensor | None = None,
    has_bias: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """dT / d(slot) from the tensors in the two other slots, through PyTorch's dispatcher.

    Args:
        slot: what is computed; its own tensor gives shape and memory format (OUTPUT needs none).
        tensors: one a slot.
        geometry: of the convolution.
        bias: what is added to OUTPUT.
        has_bias: the second result is the bias's gradient, beside WEIGHT's.
    """
    x, w, g = tensors
    if slot == OUTPUT:
        if not torch.is_autocast_enabled(x.device.type):
            return _call(CONV2D, x, w, bias, *geometry), None
        # The operators have their dtype, and conv2d is the one that would heed autocast.
        with torch.autocast(x.device.type, enabled=False):
            return _call(CONV2D, x, w, bias, *geometry), None
    if slot == INPUT:
        return _call(INPUT_GRADIENT, g, w, x, *geometry), None
    weight_grad, bias_grad = _call(WEIGHT_GRADIENT, g, x, w, *geometry, has_bias)
    return weight_grad, bias_grad if has_bias else None


def _call(operator: Operator, *arguments: Any) -> Any:
    """An operator; past the dispatcher in an ordinary backward pass."""
    if (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and nobody_looks_on()
        and all(tensor is None or is_plain(tensor) for tensor in arguments[:3])
    ):
        return operator.compute(*arguments)
    return operator.overload(*arguments)
