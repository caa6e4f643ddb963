"""vmap over the operators: one call of the same operator, without a loop.

The mapped dimension becomes part of a dimension that the convolution has anyway. Besides the
spatial ones, and with channels split into groups, the tensors of T have the dimensions

    x  n g   c      n the batch, g the groups, c and k the input and output channels of a group
    w    g k c
    y  n g k

A dimension mapped over some of them folds into the one that just those have: into n where x and y
have it, into k for w and y, into c for x and w, into g where all three have it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from convsmith.ops import operators
from convsmith.ops.operators import INPUT, OUTPUT, WEIGHT, Operator
from convsmith.spec import Pair

_DIMENSIONS = ("ngc", "gkc", "ngk")  # By slot.


class _Fold(NamedTuple):
    """A mapped dimension of ``size`` folded into the dimension ``into`` of a convolution."""

    into: str
    size: int
    groups: int

    @classmethod
    def of(cls, slots: Collection[int], size: int, groups: int) -> _Fold:
        """The fold for a dimension that the tensors in ``slots``, two or all three, have."""
        into = next(
            dimension
            for dimension in "nkcg"
            if all((dimension in _DIMENSIONS[slot]) == (slot in slots) for slot in range(3))
        )
        return cls(into, size, groups)

    @property
    def folded_groups(self) -> int:
        """The groups of the folded convolution."""
        return self.groups * self.size if self.into == "g" else self.groups

    def fold(self, slot: int, tensor: Tensor) -> Tensor:
        """The 4-D tensor of a 5-D one whose first dimension is the mapped one."""
        at, group = _DIMENSIONS[slot].index(self.into), _DIMENSIONS[slot].index("g")
        grouped = _split(tensor, 1 + group, self.groups).movedim(0, at)
        return grouped.flatten(at, at + 1).flatten(group, group + 1)

    def unfold(self, slot: int, tensor: Tensor) -> Tensor:
        """The inverse of ``fold``."""
        at, group = _DIMENSIONS[slot].index(self.into), _DIMENSIONS[slot].index("g")
        grouped = _split(tensor, group, self.folded_groups)
        return _split(grouped, at, self.size).movedim(at, 0).flatten(1 + group, 2 + group)

    def fold_bias(self, bias: Tensor) -> Tensor:
        """``fold`` for a bias (mapped, K), whose one dimension is a weight's first."""
        return self.fold(WEIGHT, bias[..., None, None, None]).flatten()

    def unfold_bias(self, bias: Tensor) -> Tensor:
        """The inverse of ``fold_bias``."""
        return self.unfold(WEIGHT, bias[:, None, None, None]).flatten(1)


def _split(tensor: Tensor, dimension: int, outer: int) -> Tensor:
    """Dimension ``dimension`` as (outer, the rest)."""
    shape = tensor.shape
    rest = shape[dimension] // outer
    return tensor.reshape(*shape[:dimension], outer, rest, *shape[dimension + 1 :])


def _fold_operands(
    operator: Operator,
    info: Any,
    in_dims: Sequence[int | None],
    first: Tensor,
    second: Tensor,
    groups: int,
) -> tuple[_Fold, Tensor, Tensor] | None:
    """The two operands with the mapped dimension folded in; None where neither has it."""
    first_dim, second_dim = in_dims[:2]
    first_slot, second_slot = operator.operands
    slots = {operator.result}
    slots |= {first_slot} if first_dim is not None else set()
    slots |= {second_slot} if second_dim is not None else set()
    if len(slots) == 1:
        return None
    fold = _Fold.of(slots, info.batch_size, groups)
    if first_dim is not None:
        first = fold.fold(first_slot, first.movedim(first_dim, 0))
    if second_dim is not None:
        second = fold.fold(second_slot, second.movedim(second_dim, 0))
    return fold, first, second


def conv2d(
    operator: Operator,
    info: Any,
    in_dims: Sequence[int | None],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> tuple[Tensor, int]:
    """The rule of conv2d, in the form that torch.library.register_vmap asks for."""
    _, weight_dim, bias_dim = in_dims[:3]
    if bias is not None and bias_dim is not None:
        bias = bias.movedim(bias_dim, 0)
    # A bias for each of the mapped, with weights that they share, can only be added afterwards.
    late = bias if bias_dim is not None and weight_dim is None else None
    fused = bias if late is None else None
    folded = _fold_operands(operator, info, in_dims, input, weight, groups)
    if folded is None:
        output = operators.conv2d(input, weight, fused, (stride, padding, dilation, groups))
    else:
        fold, input, weight = folded
        if fused is not None and weight_dim is not None:
            fused = fold.fold_bias(fused if bias_dim is not None else fused.expand(fold.size, -1))
        geometry = (stride, padding, dilation, fold.folded_groups)
        output = fold.unfold(OUTPUT, operators.conv2d(input, weight, fused, geometry))
    return (output if late is None else output + late[:, None, :, None, None]), 0


def gradient(
    operator: Operator,
    info: Any,
    in_dims: Sequence[int | None],
    first: Tensor,
    second: Tensor,
    like: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    *has_bias: bool,
) -> Any:
    """The rule of the two gradients, in the form that torch.library.register_vmap asks for."""
    pairs = (stride, padding, dilation)
    like_dim = in_dims[2]
    shape = like.shape if like_dim is None else like.select(like_dim, 0).shape
    folded = _fold_operands(operator, info, in_dims, first, second, groups)
    if folded is None:
        like = like if like_dim is None else like.select(like_dim, 0)
        result = operator.overload(first, second, like, *pairs, groups, *has_bias)
        return result, (None if operator.result == INPUT else (None, None))

    fold, first, second = folded
    # Nothing but the shape is taken from `like`: one element, seen as many, will do.
    like = fold.fold(operator.result, like.new_empty(()).expand(fold.size, *shape))
    result = operator.overload(first, second, like, *pairs, fold.folded_groups, *has_bias)
    if operator.result == INPUT:
        return fold.unfold(INPUT, result), 0
    weight_grad, bias_grad = result
    if has_bias == (True,) and in_dims[0] is not None:
        return (fold.unfold(WEIGHT, weight_grad), fold.unfold_bias(bias_grad)), (0, 0)
    return (fold.unfold(WEIGHT, weight_grad), bias_grad), (0, None)
