"""The three convolutions as plain functions of tensors: plan, then launch or hand to PyTorch.

Nothing here knows of autograd. ``convsmith.ops`` calls these below every dispatcher layer, and
``conv2d`` and ``conv_transpose2d`` call ``forward`` and ``input_gradient``, in two steps, where no
layer has anything to do.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from convsmith import choice, pytorch_convolution
from convsmith.errors import ConvSmithError
from convsmith.launch import (
    DeviceLaunch,
    Launch,
    SimulatedLaunch,
    run_forward,
    run_input_gradient,
    run_weight_gradient,
)
from convsmith.planner import TORCH, is_simulating, requested_kernel
from convsmith.spec import ConvSpec, Direction, Pair, float32_switch, supported_dtypes

_DTYPES = frozenset(supported_dtypes())

# What a call needs to know, by everything it depends on: the launch, or None for PyTorch's own.
_launches: dict[object, Launch | None] = {}
_LAUNCHES_KEPT = 16384

_Geometry = tuple[Pair, Pair, Pair, int]  # stride, padding, dilation, groups


def takes(device_type: str) -> bool:
    """Whether tensors on such a device can run on ConvSmith's kernels at this moment."""
    if device_type == "cpu":
        return is_simulating() or requested_kernel() is not None
    return device_type == "cuda"


def switches() -> object:
    """What a launch depends on beside the call's arguments, as a hashable value."""
    return float32_switch(), requested_kernel(), is_simulating(), choice.is_measured()


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """y = conv2d(input, weight) + bias."""
    launch = forward_launch(input, weight, bias, stride, padding, dilation, groups)
    if launch is None:
        return pytorch_convolution.forward(input, weight, bias, stride, padding, dilation, groups)
    return run_forward(launch, input, weight, bias)


def forward_launch(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Launch | None:
    """What ``forward`` launches for these tensors; None where PyTorch's own convolution runs."""
    geometry = (stride, padding, dilation, groups)
    return _launch_for(Direction.FORWARD, input, weight, bias, None, geometry)


def input_gradient(
    grad_output: Tensor,
    weight: Tensor,
    input_like: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """d(sum(grad_output * y)) / d(input); ``input_like`` gives its shape and layout."""
    launch = input_gradient_launch(
        grad_output, weight, input_like, stride, padding, dilation, groups
    )
    if launch is None:
        return pytorch_convolution.input_gradient(
            grad_output, weight, input_like, stride, padding, dilation, groups
        )
    return run_input_gradient(launch, grad_output, weight)


def input_gradient_launch(
    grad_output: Tensor,
    weight: Tensor,
    input_like: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Launch | None:
    """What ``input_gradient`` launches for these tensors; None where it is PyTorch's."""
    geometry = (stride, padding, dilation, groups)
    return _launch_for(Direction.GRAD_INPUT, input_like, weight, None, grad_output, geometry)


def weight_gradient(
    grad_output: Tensor,
    input: Tensor,
    weight_like: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    has_bias: bool,
) -> tuple[Tensor, Tensor | None]:
    """d(sum(grad_output * y)) / d(weight), and / d(bias) where ``has_bias``.

    ``weight_like`` gives the weight's shape and layout.
    """
    bias_grad = grad_output.new_empty(weight_like.shape[0]) if has_bias else None
    geometry = (stride, padding, dilation, groups)
    launch = _launch_for(
        Direction.GRAD_WEIGHT, input, weight_like, bias_grad, grad_output, geometry
    )
    if launch is None:
        return pytorch_convolution.weight_gradient(
            grad_output, input, weight_like, stride, padding, dilation, groups, has_bias
        )
    return run_weight_gradient(launch, grad_output, input, bias_grad), bias_grad


def prefers_torch(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> bool:
    """Whether PyTorch's own convolution runs in every direction that this call may come to need."""
    geometry = (stride, padding, dilation, groups)
    directions = [Direction.FORWARD]
    if torch.is_grad_enabled():
        if input.requires_grad:
            directions.append(Direction.GRAD_INPUT)
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            directions.append(Direction.GRAD_WEIGHT)
    return _are_pytorchs(directions, input, weight, bias, None, geometry)


def prefers_torch_transposed(
    grad_output: Tensor,
    weight: Tensor,
    input_like: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> bool:
    """``prefers_torch`` for a call that computes an input gradient: a transposed convolution."""
    geometry = (stride, padding, dilation, groups)
    directions = [Direction.GRAD_INPUT]
    if torch.is_grad_enabled():
        if grad_output.requires_grad:
            directions.append(Direction.FORWARD)
        if weight.requires_grad:
            directions.append(Direction.GRAD_WEIGHT)
    return _are_pytorchs(directions, input_like, weight, None, grad_output, geometry)


def _are_pytorchs(
    directions: Sequence[Direction],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad_output: Tensor | None,
    geometry: _Geometry,
) -> bool:
    # A gradient of the input knows no bias: with one it would be of another kind when it runs.
    return all(
        _launch_for(
            direction,
            input,
            weight,
            None if direction is Direction.GRAD_INPUT else bias,
            grad_output,
            geometry,
        )
        is None
        for direction in directions
    )


def _launch_for(
    direction: Direction,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad_output: Tensor | None,
    geometry: _Geometry,
) -> Launch | None:
    """The launch of our kernel for these tensors; None where PyTorch's own convolution runs."""
    dtype = input.dtype
    if dtype not in _DTYPES or not takes(input.device.type):
        return None
    key = (
        direction,
        input.shape,
        input.stride(),
        weight.shape,
        weight.stride(),
        dtype,
        weight.dtype,
        input.device,
        weight.device,
        None if bias is None else (bias.shape, bias.dtype, bias.device),
        None if grad_output is None else (grad_output.shape, grad_output.stride()),
        geometry,
        switches(),
    )
    try:
        return _launches[key]
    except KeyError:
        if len(_launches) >= _LAUNCHES_KEPT:
            _launches.clear()
    launch = None
    if _is_ordinary(input, weight, bias, geometry[3]):
        launch = _make_launch(direction, input, weight, bias, grad_output, geometry)
    if not choice.is_put_off():
        _launches[key] = launch
    return launch


def _make_launch(
    direction: Direction,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad_output: Tensor | None,
    geometry: _Geometry,
) -> Launch | None:
    requested = requested_kernel()
    simulate = is_simulating() and not input.is_cuda
    try:
        spec = ConvSpec.of(direction, input, weight, bias is not None, *geometry, grad_output)
    except ValueError:
        return None  # PyTorch says what is wrong, in its own words
    if 0 in (*spec.input_shape, *spec.weight_shape):
        return None  # nothing to compute: not a thing to insist on a kernel for
    plan = choice.chosen_plan(spec, input.device, requested, simulate=simulate)
    if plan.kernel == TORCH:
        return None
    if simulate:
        return SimulatedLaunch(plan)
    try:
        return DeviceLaunch(plan, input.device)
    except ConvSmithError as error:
        if requested is not None:
            raise
        warnings.warn(
            f"PyTorch's convolution runs in place of ConvSmith's kernel: {error}", stacklevel=2
        )
        return None


def _is_ordinary(input: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> bool:
    """Whether the operands go together; where they do not, PyTorch says so in its own words."""
    return (
        input.dim() == weight.dim() == 4
        and groups > 0
        and input.shape[1] == weight.shape[1] * groups
        and weight.shape[0] % groups == 0
        and (weight.dtype, weight.device) == (input.dtype, input.device)
        and (
            bias is None
            or (bias.shape, bias.dtype, bias.device)
            == (weight.shape[:1], input.dtype, input.device)
        )
    )
