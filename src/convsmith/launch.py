"""A plan bound to its compiled kernel: what remains to be done once the tensors are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from convsmith import jit
from convsmith.jit import simulator
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
