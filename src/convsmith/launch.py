"""A plan bound to its compiled kernel: what remains to be done once the tensors are there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from convsmith import jit
from convsmith.jit import cache, simulator
from convsmith.kernels.family import places_written
from convsmith.kernels.source import KernelSource
from convsmith.planner import Plan, architecture_of
from convsmith.spec import extent


class Launch(Protocol):
    """Runs a plan's kernel on tensors in the order of ``kernels.family``."""

    plan: Plan

    def __call__(self, *tensors: Tensor | None) -> None: ...


class DeviceLaunch:
    """Launches on the current stream of the tensors' GPU; copies nothing and waits for nothing.

    Raises:
        ConvSmithError: when made, the kernel cannot be compiled or loaded.
    """

    def __init__(self, plan: Plan, device: torch.device) -> None:
        assert plan.family is not None
        self.plan = plan
        self._problem = plan.family.problem(plan.spec, plan.configuration)
        source = plan.family.source(plan.spec, plan.configuration)
        self._launch = jit.load(source, architecture_of(device)).launch
        self._device_index = torch.cuda.current_device() if device.index is None else device.index

    def __call__(self, *tensors: Tensor | None) -> None:
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        index = self._device_index
        stream = torch._C._cuda_getCurrentRawStream(index)
        if index == torch._C._cuda_getDevice():
            self._launch(self._problem, stream, *addresses)
        else:
            with torch.cuda.device(index):
                self._launch(self._problem, stream, *addresses)


class SimulatedLaunch:
    """Runs the same kernel source in the simulator, on CPU tensors."""

    def __init__(self, plan: Plan) -> None:
        assert plan.family is not None
        self.plan = plan
        self._problem = plan.family.problem(plan.spec, plan.configuration)
        self._source = plan.family.source(plan.spec, plan.configuration)
        self._writable = places_written(plan.spec.direction)

    def __call__(self, *tensors: Tensor | None) -> None:
        simulate(self._source, self._problem, tensors, self._writable)


def run_forward(launch: Launch, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y, by the launch of a forward convolution of tensors like these."""
    output = _result(launch.plan, input)
    bias = None if bias is None else bias.contiguous()
    launch(input, weight, bias, output, _workspace(launch.plan, input))
    return output


def run_input_gradient(launch: Launch, grad_output: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the input, by the launch of one of tensors like these."""
    input_grad = _result(launch.plan, grad_output)
    launch(grad_output, weight, input_grad, _workspace(launch.plan, grad_output))
    return input_grad


def run_weight_gradient(
    launch: Launch, grad_output: Tensor, input: Tensor, bias_grad: Tensor | None
) -> Tensor:
    """The gradient of the weight, by the launch of one of tensors like these.

    That of the bias is written to ``bias_grad``.
    """
    weight_grad = _result(launch.plan, grad_output)
    launch(grad_output, input, weight_grad, bias_grad, _workspace(launch.plan, grad_output))
    return weight_grad


def _result(plan: Plan, like: Tensor) -> Tensor:
    spec = plan.spec
    return torch.empty_strided(
        spec.result_shape, spec.result_strides, dtype=spec.dtype, device=like.device
    )


def _workspace(plan: Plan, like: Tensor) -> Tensor | None:
    size = plan.workspace_bytes
    return like.new_empty(size, dtype=torch.uint8) if size else None


def simulate(
    source: KernelSource,
    problem: bytes,
    tensors: Sequence[Tensor | None],
    writable: frozenset[int],
) -> None:
    """Runs a kernel on CPU tensors, of which it may write those at the places ``writable``.

    Raises:
        SimulatorError: the simulator found a fault of the kernel.
    """
    buffers = [
        None
        if tensor is None
        else simulator.Buffer(
            tensor.data_ptr(),
            extent(tuple(tensor.shape), tensor.stride()) * tensor.element_size(),
            place in writable,
        )
        for place, tensor in enumerate(tensors)
    ]
    simulator.run(source, problem, buffers)


def compile_ahead(plans: Iterable[Plan], device: torch.device) -> None:
    """Bring the own kernels that ``plans`` run into this process, compiled all at once.

    Nothing is said of a kernel that does not compile: its first call says it. A single one is left
    to that, too.
    """
    sources = {
        plan.family.source(plan.spec, plan.configuration)
        for plan in plans
        if plan.family is not None
    }
    if len(sources) > 1 and not cache.compiling_disabled():
        jit.load_all(sources, architecture_of(device))
