"""``convsmith.conv2d`` and ``conv_transpose2d``: those of F in everything but their speed.

A call is understood just far enough to know that it is an ordinary one, which ConvSmith's kernels
take. Every other call goes as it came to PyTorch's own function, which does it or says what is
wrong with it: nobody keeps PyTorch's contract better than PyTorch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from enum import Enum
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.jit._builtins import _register_builtin
from torch.nn import Parameter
from torch.overrides import _get_current_function_mode_stack, has_torch_function_variadic

from convsmith import choice, execute, ops
from convsmith.launch import run_forward, run_input_gradient
from convsmith.ops.layers import is_plain, nobody_looks_on
from convsmith.spec import Pair, output_extent, supported_dtypes

# Taken now, so that those of F may be replaced by ours.
_torch_conv2d = torch.conv2d
_torch_conv_transpose2d = torch.conv_transpose2d


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """y[n, k] = bias[k] + sum over c of input[n, c] cross-correlated with weight[k, c].

    ``torch.nn.functional.conv2d``, faster: the same arguments, results, gradients and errors.

    Args:
        input: (N, C, H, W) or (C, H, W), of any strides.
        weight: (K, C / groups, R, S), of any strides.
        bias: (K), or None.
        stride, dilation: one number, or (vertical, horizontal).
        padding: likewise, or "valid" (none), or "same" (the output is as large as the input).
        groups: the parts that the channels fall into.

    Returns:
        (N, K, P, Q) or (K, P, Q); P = floor((H + 2 * padding - dilation * (R - 1) - 1) / stride)
        + 1, and Q likewise. Channels last where ``input`` or ``weight`` is.

    Raises:
        RuntimeError, TypeError: what PyTorch raises for the same arguments.
    """
    key = _key_of(input, weight, bias, stride, padding, dilation, groups)
    route = None if key is None else _routes.get(key)
    if route is None:
        route = _route_of(input, weight, bias, stride, padding, dilation, groups)
        if key is not None:
            _remember(key, route)
    problem, run = route
    if problem is None:
        return _torch_conv2d(input, weight, bias, stride, padding, dilation, groups)
    geometry, batched, missing, _ = problem
    if not batched:
        input = input.unsqueeze(0)
    if missing != (0, 0):
        if not torch.compiler.is_compiling():
            _warn_of_copy()
        rows, columns = missing
        input = torch.constant_pad_nd(input, (0, columns, 0, rows))
    if run is not None and nobody_looks_on():
        output = run(input, weight, bias)
    else:
        output = ops.conv2d(input, weight, bias, geometry)
    return output if batched else output.squeeze(0)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """y = bias + the gradient of sum(input * conv2d(x, weight)) in x: a transposed convolution.

    ``torch.nn.functional.conv_transpose2d``, faster: the same arguments, results, gradients and
    errors. It runs the kernels that compute the input gradient of a convolution with this weight;
    the bias is added to their result in place, by PyTorch.

    Args:
        input: (N, K, P, Q) or (K, P, Q), of any strides.
        weight: (K, C / groups, R, S), of any strides.
        bias: (C), or None.
        stride, padding, dilation: of that convolution; one number, or (vertical, horizontal).
        output_padding: likewise; rows more below, and columns more on the right. Smaller than
            either the stride or the dilation; from the stride on it takes a padded copy.
        groups: the parts that the channels fall into.

    Returns:
        (N, C, H, W) or (C, H, W); H = (P - 1) * stride - 2 * padding + dilation * (R - 1)
        + output_padding + 1, and W likewise. Channels last where ``input`` or ``weight`` is.

    Raises:
        RuntimeError, TypeError: what PyTorch raises for the same arguments.
    """
    key = _key_of(input, weight, bias, stride, padding, dilation, groups)
    if key is not None:
        added = tuple(output_padding) if type(output_padding) is list else output_padding
        key = (key, added) if _is_one_of_its_kind(added) else None
    route = None if key is None else _routes.get(key)
    if route is None:
        route = _transposed_route_of(
            input, weight, bias, stride, padding, output_padding, groups, dilation
        )
        if key is not None:
            _remember(key, route)
    problem, run = route
    if problem is None:
        return _torch_conv_transpose2d(
            input, weight, bias, stride, padding, output_padding, groups, dilation
        )
    geometry, batched, missing, size = problem
    if not batched:
        input = input.unsqueeze(0)
    if missing != (0, 0):
        rows, columns = missing
        input = torch.constant_pad_nd(input, (0, columns, 0, rows))
    if run is not None and nobody_looks_on():
        output = run(input, weight, None)
        if bias is not None:
            output.add_(bias[:, None, None])
    else:
        output = ops.conv_transpose2d(input, weight, bias, geometry, size)
    return output if batched else output.squeeze(0)


# --- The way of a call, and the memory of calls like one before: to look at everything afresh would
# take longer than many a convolution.


class _Route(NamedTuple):
    """What becomes of a call."""

    problem: _Problem | None  # None: it is PyTorch's.
    run: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None  # Past the dispatcher.


_routes: dict[object, _Route] = {}
_ROUTES_KEPT = 16384


def _remember(key: object, route: _Route) -> None:
    if choice.is_put_off():
        return
    if len(_routes) >= _ROUTES_KEPT:
        _routes.clear()
    _routes[key] = route


def _key_of(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
) -> object | None:
    """Everything that a route depends on; None for calls that are always looked at afresh."""
    if (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or type(input) not in _ORDINARY_TYPES
        or type(weight) not in _ORDINARY_TYPES
        or (bias is not None and type(bias) not in _ORDINARY_TYPES)
        or _is_claimed(input, weight, bias)
        or input.dtype not in _DTYPES
        or not (input.is_cuda or execute.takes(input.device.type))
        or not (is_plain(input) and is_plain(weight) and (bias is None or is_plain(bias)))
        or not (_is_one_of_its_kind(stride) and _is_one_of_its_kind(dilation))
        or not (type(padding) is str or _is_one_of_its_kind(padding))
        or type(groups) is not int
    ):
        return None
    grads = torch.is_grad_enabled()
    return (
        input.shape,
        input.stride(),
        input.dtype,
        input.device,
        weight.shape,
        weight.stride(),
        weight.dtype,
        weight.device,
        None if bias is None else (bias.shape, bias.dtype, bias.device),
        stride,
        padding,
        dilation,
        groups,
        grads and input.requires_grad,
        grads and (weight.requires_grad or (bias is not None and bias.requires_grad)),
        torch._C._is_any_autocast_enabled(),
        execute.switches(),
    )


def _is_one_of_its_kind(value: object) -> bool:
    """Whether what equals it means the same: True and 1.0 equal 1, but PyTorch refuses them."""
    if type(value) is tuple and len(value) == 2:
        return type(value[0]) is int and type(value[1]) is int
    return type(value) is int


def _route_of(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
) -> _Route:
    kind = _kind_of(input, weight, bias)
    if kind is _Kind.FOREIGN:
        return _Route(None, None)
    problem = _problem_of(input, weight, bias, stride, padding, dilation, groups)
    if problem is None or kind is _Kind.LAYERED or problem.missing != (0, 0):
        return _Route(problem, None)
    if torch.is_autocast_enabled(input.device.type):
        return _Route(problem, None)
    batched = input if problem.batched else input.unsqueeze(0)
    if execute.prefers_torch(batched, weight, bias, *problem.geometry):
        return _Route(None, None)
    launch = execute.forward_launch(batched, weight, bias, *problem.geometry)
    if launch is None:
        return _Route(problem, None)
    run = partial(run_forward, launch)
    if torch.is_grad_enabled() and torch._C._any_requires_grad(input, weight, bias):
        return _Route(problem, ops.recorded(ops.CONV2D, run, problem.geometry))
    return _Route(problem, run)


def _transposed_route_of(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    output_padding: int | Sequence[int],
    groups: int,
    dilation: int | Sequence[int],
) -> _Route:
    kind = _kind_of(input, weight, bias)
    if kind is _Kind.FOREIGN:
        return _Route(None, None)
    problem = _transposed_problem_of(
        input, weight, bias, stride, padding, output_padding, groups, dilation
    )
    if problem is None or kind is _Kind.LAYERED or problem.missing != (0, 0):
        return _Route(problem, None)
    if torch.is_autocast_enabled(input.device.type):
        return _Route(problem, None)
    batched = input if problem.batched else input.unsqueeze(0)
    like = ops.result_like(batched, weight, problem.geometry, problem.size)
    if execute.prefers_torch_transposed(batched, weight, like, *problem.geometry):
        return _Route(None, None)
    launch = execute.input_gradient_launch(batched, weight, like, *problem.geometry)
    if launch is None:
        return _Route(problem, None)

    def run(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return run_input_gradient(launch, input, weight)

    if torch.is_grad_enabled() and torch._C._any_requires_grad(input, weight):
        return _Route(problem, ops.recorded(ops.INPUT_GRADIENT, run, problem.geometry))
    return _Route(problem, run)


# --- Which tensors are ours.


class _Kind(Enum):
    """What ConvSmith has to know of the tensors of a call."""

    PLAIN = "memory and no more: sizes are numbers"
    LAYERED = "seen through a layer of PyTorch: traced, differentiated or mapped by functorch"
    FOREIGN = "not for ConvSmith"


_DTYPES = frozenset(supported_dtypes())
# Tuples: torch 2.8's dynamo finds no types in a frozenset.
_ORDINARY_TYPES = (Tensor, Parameter)
_LAYERED_TYPES = (*_ORDINARY_TYPES, FakeTensor, FunctionalTensor)


def _kind_of(input: object, weight: object, bias: object) -> _Kind:
    if _is_claimed(input, weight, bias):  # First: a mode would see every question asked below.
        return _Kind.FOREIGN
    if not isinstance(input, Tensor) or not isinstance(weight, Tensor):
        return _Kind.FOREIGN
    device, dtype = input.device, input.dtype
    if not execute.takes(device.type) or dtype not in _DTYPES:
        return _Kind.FOREIGN
    if not _goes_with(weight, device, dtype):
        return _Kind.FOREIGN
    if bias is not None and not (isinstance(bias, Tensor) and _goes_with(bias, device, dtype)):
        return _Kind.FOREIGN
    # What TorchScript records and what goes into an ONNX file has to run without ConvSmith.
    if torch.compiler.is_compiling():
        exporting_to_onnx = torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
        return _Kind.FOREIGN if exporting_to_onnx else _layered(input, weight, bias)
    if torch._C._is_tracing():
        return _Kind.FOREIGN
    if is_plain(input) and is_plain(weight) and (bias is None or is_plain(bias)):
        return _Kind.PLAIN
    return _layered(input, weight, bias)


def _goes_with(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the tensor is on ``device`` and of ``dtype``, or of one that autocast makes equal.

    Autocast does so with all dtypes of ours but float64.
    """
    if tensor.device != device:
        return False
    return tensor.dtype is dtype or (
        tensor.dtype in _DTYPES
        and torch.float64 not in (tensor.dtype, dtype)
        and torch.is_autocast_enabled(device.type)
    )


def _layered(*tensors: Tensor | None) -> _Kind:
    """LAYERED, unless the memory underneath is laid out in a way that no kernel knows."""
    for tensor in tensors:
        if tensor is not None and (
            type(tensor) not in _LAYERED_TYPES
            or tensor.layout is not torch.strided
            or tensor.is_nested
        ):
            return _Kind.FOREIGN
    return _Kind.LAYERED


# Modes of PyTorch's own that look at every call and let a convolution pass: the default device
# (torch.set_default_device), and what make_fx and torch.export note beside their graphs.
_PASSIVE_MODES = frozenset(
    {
        "torch.utils._device",
        "torch.fx.experimental.proxy_tensor",
        "torch._export.non_strict_utils",
        "torch.export._safeguard",
    }
)


def _is_claimed(*tensors: object) -> bool:
    """Whether a subclass or a mode with a __torch_function__ is to have the call."""
    if not has_torch_function_variadic(*tensors):
        return False
    return any(
        tensor is not None and type(tensor) not in _LAYERED_TYPES for tensor in tensors
    ) or any(
        type(mode).__module__ not in _PASSIVE_MODES
        for mode in _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    )


# --- Which arguments are ours.


class _Problem(NamedTuple):
    """The arguments of an ordinary call, in the one form that the operators take."""

    geometry: ops.Geometry
    batched: bool  # (N, C, H, W), not (C, H, W).
    missing: Pair  # Rows of zeros below and columns on the right that the input lacks.
    size: Pair  # Height and width of the result.


def _pair(value: int | Sequence[int], kinds: tuple[type, ...] = (int,)) -> Pair | None:
    """(vertical, horizontal) of an int, or of one or two of them; None where it is none of these.

    A bool is none of these: PyTorch refuses it.
    """
    if isinstance(value, (tuple, list)) and 1 <= len(value) <= 2:
        rows, columns = value[0], value[-1]
    else:
        rows = columns = value
    return (rows, columns) if type(rows) in kinds and type(columns) in kinds else None


def _problem_of(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: int | Sequence[int],
    paddings: int | Sequence[int] | str,
    dilations: int | Sequence[int],
    groups: int,
) -> _Problem | None:
    """The problem that a call describes; None where it is PyTorch's, to do or to refuse."""
    stride, dilation = _pair(strides), _pair(dilations)
    padding = paddings if isinstance(paddings, str) else _pair(paddings)
    if stride is None or padding is None or dilation is None or type(groups) is not int:
        return None
    if input.dim() not in (3, 4) or weight.dim() != 4:
        return None
    channels, *size = input.shape[-3:]
    out_channels, group_channels, *kernel = weight.shape
    if any(value < 1 for value in (groups, channels, out_channels, *size, *kernel)):
        return None
    if channels != group_channels * groups or out_channels % groups:
        return None
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != out_channels):
        return None
    if any(value < 1 for value in (*stride, *dilation)):
        return None
    missing = (0, 0)
    if isinstance(padding, str):
        if padding == "valid":
            padding = (0, 0)
        elif padding == "same" and stride == (1, 1):
            rows, columns = (dilation[axis] * (kernel[axis] - 1) for axis in (0, 1))
            padding, missing = (rows // 2, columns // 2), (rows % 2, columns % 2)
        else:
            return None
    rows, columns = (
        output_extent(
            size[axis] + missing[axis], kernel[axis], stride[axis], padding[axis], dilation[axis]
        )
        for axis in (0, 1)
    )
    if padding[0] < 0 or padding[1] < 0 or rows < 1 or columns < 1:
        return None
    geometry = (stride, padding, dilation, groups)
    return _Problem(geometry, input.dim() == 4, missing, (rows, columns))


def _transposed_problem_of(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: int | Sequence[int],
    paddings: int | Sequence[int],
    output_paddings: int | Sequence[int],
    groups: int,
    dilations: int | Sequence[int],
) -> _Problem | None:
    """``_problem_of`` for a transposed convolution."""
    stride, dilation = _pair(strides), _pair(dilations)
    # What is added is the module's output_size less the least one, and may be a traced number.
    padding, added = _pair(paddings), _pair(output_paddings, (int, torch.SymInt))
    if stride is None or padding is None or added is None or dilation is None:
        return None
    if type(groups) is not int or input.dim() not in (3, 4) or weight.dim() != 4:
        return None
    channels, *size = input.shape[-3:]
    in_channels, group_channels, *kernel = weight.shape
    if any(value < 1 for value in (groups, channels, group_channels, *size, *kernel)):
        return None
    if channels != in_channels or channels % groups:
        return None
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != group_channels * groups):
        return None
    if any(value < 1 for value in (*stride, *dilation)):
        return None
    if any(value < 0 for value in (*padding, *added)):
        return None
    if any(added[axis] >= max(stride[axis], dilation[axis]) for axis in (0, 1)):
        return None
    # A convolution of a result larger by a whole stride has a row more than there are.
    missing = (added[0] // stride[0], added[1] // stride[1])
    rows, columns = (
        (size[axis] - 1) * stride[axis]
        - 2 * padding[axis]
        + dilation[axis] * (kernel[axis] - 1)
        + added[axis]
        + 1
        for axis in (0, 1)
    )
    if rows < 1 or columns < 1:
        return None
    geometry = (stride, padding, dilation, groups)
    return _Problem(geometry, input.dim() == 4, missing, (rows, columns))


@cache
def _warn_of_copy() -> None:
    """Says once what PyTorch says once."""
    warnings.warn(
        "Using padding='same' with even kernel lengths and odd dilation may require a zero-padded "
        "copy of the input be created",
        stacklevel=3,
    )


# A scripted module or function has PyTorch's convolution in it, and runs without ConvSmith.
_register_builtin(conv2d, "aten::conv2d")
_register_builtin(conv_transpose2d, "aten::conv_transpose2d")
