"""Reverse and forward differentiation of the operators, alone and under functorch's transforms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from convsmith.ops.computation import output_shape
from convsmith.ops.operators import OUTPUT, WEIGHT, Geometry, Operator, solve
from convsmith.spec import Pair


def differentiable(
    operator: Operator,
    keyset: Any,
    first: Tensor,
    second: Tensor,
    third: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    *has_bias: bool,
) -> Any:
    """The operator as autograd has it: computed below autograd, and recorded if anybody asks."""
    # conv2d is differentiable in its third argument; the gradients take nothing from it but shape.
    bias, like = (third, None) if operator.result == OUTPUT else (None, third)
    geometry = (stride, padding, dilation, groups)

    def below(first: Tensor, second: Tensor, bias: Tensor | None) -> Any:
        third = bias if like is None else like
        with torch._C._AutoDispatchBelowAutograd():
            return operator.overload.redispatch(
                keyset & torch._C._after_autograd_keyset,
                *(first, second, third, *geometry, *has_bias),
            )

    asked = torch.is_grad_enabled() and torch._C._any_requires_grad(first, second, bias)
    if not asked and forward_ad._current_level < 0:
        return below(first, second, bias)
    call = _Call(operator, below, like, geometry, has_bias)
    if not torch._C._are_functorch_transforms_active():
        return _apply(call, first, second, bias)
    with enable_single_level_autograd_function():
        return _apply(call, first, second, bias)


def recorded(
    operator: Operator,
    run: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    geometry: Geometry,
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """``run``, which does what ``operator`` does for plain tensors, recorded by autograd.

    It goes past the dispatcher. The operator is conv2d or the input gradient; the latter's ``run``
    is given None for a bias.
    """
    return partial(_apply, _Call(operator, run, None, geometry, ()))


class _Call(NamedTuple):
    """What an operator is called with besides the tensors it is differentiable in."""

    operator: Operator
    below: Callable[[Tensor, Tensor, Tensor | None], Any]  # Gives the result, under autograd.
    like: Tensor | None  # The gradients' third argument.
    geometry: Geometry
    has_bias: tuple[bool, ...]  # The weight gradient's last argument.


class _Convolution(_SingleLevelFunction):
    """The derivatives of the three operators, each a call of the other two.

    Its base is the base of torch.autograd.Function: that one stands above the dispatcher and has
    functorch take it apart, this one stands inside, at one of functorch's levels.
    """

    @staticmethod
    def forward(ctx: Any, call: _Call, first: Tensor, second: Tensor, bias: Tensor | None) -> Any:
        ctx.operator, ctx.geometry, ctx.has_bias = call.operator, call.geometry, call.has_bias
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(first, second)
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(first, second, call.like)
        if torch._C._are_functorch_transforms_active():
            # An autograd.Function switches both modes off for what it runs, where an operator of
            # PyTorch's own does not, and the transforms around this one rest on that.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                result = call.below(first, second, bias)
        else:
            result = call.below(first, second, bias)
        if call.has_bias == (False,):
            ctx.mark_non_differentiable(result[1])
        return result

    @staticmethod
    def backward(
        ctx: Any, upstream: Tensor | None, upstream_bias: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        operator: Operator = ctx.operator
        _, *needed, bias_needed = ctx.needs_input_grad
        tensors = operator.place(upstream, *ctx.saved_tensors)
        grads: list[Tensor | None] = [None, None]
        bias_grad = None
        for position, slot in enumerate(operator.operands):
            if not needed[position]:
                continue
            if upstream is not None:
                bias = upstream_bias if slot == OUTPUT else None
                grads[position], bias_grad = solve(slot, tensors, ctx.geometry, bias, bias_needed)
            elif slot == OUTPUT and upstream_bias is not None:
                grads[position] = _spread(upstream_bias, tensors[OUTPUT].shape)
        if bias_needed and bias_grad is None and upstream is not None:
            bias_grad = upstream.sum((0, 2, 3))
        return None, *grads, bias_grad

    @staticmethod
    def jvp(
        ctx: Any,
        call: None,
        first_tangent: Tensor | None,
        second_tangent: Tensor | None,
        bias_tangent: Tensor | None,
    ) -> Any:
        operator: Operator = ctx.operator
        # Forward mode is off in here as it is in `forward`, and for the same reason goes on.
        with forward_ad._set_fwd_grad_enabled(True):
            first, second, like = map(_primal, ctx.saved_tensors)
            tangent, bias_grad_tangent = None, None
            if first_tangent is not None:
                tensors = operator.place(like, first_tangent, second)
                has_bias = ctx.has_bias == (True,)
                tangent, bias_grad_tangent = solve(
                    operator.result, tensors, ctx.geometry, has_bias=has_bias
                )
            if second_tangent is not None:
                tensors = operator.place(like, first, second_tangent)
                term, _ = solve(operator.result, tensors, ctx.geometry, bias_tangent)
                tangent = term if tangent is None else tangent + term
            elif bias_tangent is not None:
                term = _spread(bias_tangent, output_shape(first, second, *ctx.geometry[:3]))
                tangent = term if tangent is None else tangent + term
            if operator.result != WEIGHT:
                return tangent
            if bias_grad_tangent is None and ctx.has_bias == (True,):
                bias_grad_tangent = first.new_zeros(first.shape[1])
            return tangent, bias_grad_tangent

    @staticmethod
    def _compiled_autograd_key(ctx: Any) -> tuple[int]:
        """What torch.autograd.Function has for tracing the backward pass."""
        return (ctx._autograd_function_id,)


_apply: Any = _Convolution.apply  # type: ignore[attr-defined]


def _primal(tensor: Tensor | None) -> Any:
    """The tensor without its tangent."""
    if tensor is None:
        return None
    return forward_ad.unpack_dual(tensor).primal  # type: ignore[no-untyped-call]


def _spread(bias: Tensor, shape: Any) -> Tensor:
    """A bias (K) as it is added to an output of ``shape`` (N, K, P, Q)."""
    return bias[:, None, None].expand(shape)
