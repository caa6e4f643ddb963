"""How long candidates take: each runs the convolution, in turns, on operands like the caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convsmith import pytorch_convolution, timing
from convsmith.errors import ConvSmithError
from convsmith.launch import DeviceLaunch, run_forward, run_input_gradient, run_weight_gradient
from convsmith.planner import TORCH, Candidate, Plan
from convsmith.spec import ConvSpec, Direction, Shape, extent

_Key = torch._C.DispatchKey
_Call = Callable[[], object]


def measured(
    spec: ConvSpec, device: torch.device, candidates: Sequence[Candidate]
) -> list[Candidate]:
    """``candidates`` with their measured times, in the order given.

    Those are left out that cannot run: a kernel that cannot be compiled, and PyTorch's convolution
    where it fails. Where no own kernel can, nothing is timed.

    Args:
        spec: the convolution; its precision is that of PyTorch's switch.
        device: a GPU whose current stream is not being captured.
        candidates: of `planner.plan_for`.

    Raises:
        torch.cuda.OutOfMemoryError: the operands or a workspace do not fit.
    """
    calls: dict[str, _Call] = {}
    with unobserved(), torch.cuda.device(device):
        operands = _Operands.draw(spec, device)
        for number, candidate in enumerate(candidates):
            call = _call_of(candidate, spec, device, operands)
            if call is not None:
                calls[str(number)] = call
        if all(candidates[int(number)].kernel == TORCH for number in calls):
            return []
        times = timing.alternate(calls, timing.CudaClock(device))
    return [
        replace(candidates[int(number)], measured_ms=time.median) for number, time in times.items()
    ]


@contextmanager
def unobserved() -> Iterator[None]:
    """No layer of PyTorch records, casts, traces or sees what is computed in here.

    A new kind of convolution is met below those layers, or above them.
    """
    layers = torch._C._dispatch_tls_local_include_set()
    for usual in (_Key.BackendSelect, _Key.ADInplaceOrView):
        layers = layers - torch._C.DispatchKeySet(usual)
    layers = layers | torch._C.DispatchKeySet(_Key.AutocastCUDA)
    with (
        torch._C.DisableTorchFunction(),
        torch._C._ExcludeDispatchKeyGuard(layers),
        torch.no_grad(),
    ):
        yield


@dataclass(frozen=True)
class _Operands:
    """x, w, b and dy; that which is computed has no values, and dy is not there in a forward."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    upstream: Tensor | None

    @classmethod
    def draw(cls, spec: ConvSpec, device: torch.device) -> _Operands:
        """Random ones, laid out as ``spec`` says, that leave PyTorch's random state as it is."""
        generator = torch.Generator(device)

        def tensor(direction: Direction, shape: Shape, strides: Shape) -> Tensor:
            # In one piece, for of an expanded tensor several elements are one in memory.
            memory = torch.empty(extent(shape, strides), dtype=spec.dtype, device=device)
            if spec.direction is not direction:
                memory.normal_(generator=generator)
            return memory.as_strided(shape, strides)

        is_forward = spec.direction is Direction.FORWARD
        return cls(
            tensor(Direction.GRAD_INPUT, spec.input_shape, spec.input_strides),
            tensor(Direction.GRAD_WEIGHT, spec.weight_shape, spec.weight_strides),
            torch.zeros(spec.out_channels, dtype=spec.dtype, device=device)
            if is_forward and spec.has_bias
            else None,
            None
            if is_forward
            else tensor(Direction.FORWARD, spec.output_shape, spec.output_strides),
        )


def _call_of(
    candidate: Candidate, spec: ConvSpec, device: torch.device, operands: _Operands
) -> _Call | None:
    """What runs ``spec`` as ``candidate`` does; None where that is impossible."""
    if candidate.kernel == TORCH:
        call = _pytorch_call(spec, operands)
        try:
            call()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError:  # cuDNN finds no algorithm: for want of memory, for example
            return None
        return call
    try:
        launch = DeviceLaunch(Plan(spec, str(device), (candidate,), "", None), device)
    except ConvSmithError:
        return None
    return _own_call(launch, spec, operands)


def _pytorch_call(spec: ConvSpec, operands: _Operands) -> _Call:
    x, w, b, dy = operands.input, operands.weight, operands.bias, operands.upstream
    geometry = (spec.stride, spec.padding, spec.dilation, spec.groups)
    if dy is None:
        return lambda: pytorch_convolution.forward(x, w, b, *geometry)
    if spec.direction is Direction.GRAD_INPUT:
        return lambda: pytorch_convolution.input_gradient(dy, w, x, *geometry)
    return lambda: pytorch_convolution.weight_gradient(dy, x, w, *geometry, spec.has_bias)


def _own_call(launch: DeviceLaunch, spec: ConvSpec, operands: _Operands) -> _Call:
    x, w, b, dy = operands.input, operands.weight, operands.bias, operands.upstream
    if dy is None:
        return lambda: run_forward(launch, x, w, b)
    if spec.direction is Direction.GRAD_INPUT:
        return lambda: run_input_gradient(launch, dy, w)
    bias_grad = dy.new_empty(spec.out_channels) if spec.has_bias else None
    return lambda: run_weight_gradient(launch, dy, x, bias_grad)
