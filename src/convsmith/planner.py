"""ConvSpec -> Plan: which kernel runs a convolution on a device, and why.

PyTorch's own convolution is always one of the candidates, so the plan is never slower than it as
far as the planner can tell. The choice is a function of the spec and the device alone: nothing is
timed, so the same call always takes the same kernel and gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from convsmith.errors import KernelUnavailableError
from convsmith.kernels import direct
from convsmith.roofline import Ceilings, ceilings_of, floor_ms
from convsmith.spec import ConvSpec, Direction, Pair, Precision

TORCH = "torch"
KERNELS = (direct.NAME, TORCH)

# An own kernel is preferred only where it is predicted to win by this much: predictions err.
REQUIRED_GAIN = 1.1

# Few, so that a simulated weight gradient is split no more than a test needs.
_SIMULATED_MULTIPROCESSORS = 4

# Of the whole process, as PyTorch's switches are: autograd runs backward passes in its own threads.
_requested: str | None = None
_simulating = False


@dataclass(frozen=True)
class Candidate:
    """One way to run a convolution.

    Args:
        kernel: the family's name, or ``torch``.
        predicted_ms: its predicted time, or None where there is no model of it.
        reason: how that time comes about, in words.
        configuration: an own family's tiling.
    """

    kernel: str
    predicted_ms: float | None
    reason: str
    configuration: direct.Configuration | None = None

    def __str__(self) -> str:
        time = "    no time" if self.predicted_ms is None else f"{self.predicted_ms:8.3f} ms"
        return f"{self.kernel:8s} {time}  {self.reason}"


@dataclass(frozen=True)
class Plan:
    """What runs ``spec`` on one device.

    Attributes:
        spec: the convolution.
        device: the device's name.
        candidates: what was considered; the first one runs.
        explanation: why the first one is the first.
        floor_ms: the least time the device allows, None where it is not a GPU.
    """

    spec: ConvSpec
    device: str
    candidates: tuple[Candidate, ...]
    explanation: str
    floor_ms: float | None

    @property
    def kernel(self) -> str:
        """The family that runs: ``direct``, or ``torch`` for PyTorch's own convolution."""
        return self.candidates[0].kernel

    @property
    def predicted_ms(self) -> float | None:
        """Predicted time in milliseconds of the kernel that runs."""
        return self.candidates[0].predicted_ms

    @property
    def configuration(self) -> direct.Configuration | None:
        """The tiling of the kernel that runs; None for PyTorch's."""
        return self.candidates[0].configuration

    @property
    def workspace_bytes(self) -> int:
        """Memory the kernel takes beside its result; PyTorch's own is not known beforehand."""
        return self.configuration.workspace_bytes if self.configuration else 0

    @property
    def source(self) -> str:
        """The CUDA C++ of the kernel that runs; empty for PyTorch's."""
        if self.configuration is None:
            return ""
        return direct.source(self.spec, self.configuration).cuda

    def __str__(self) -> str:
        floor = "" if self.floor_ms is None else f", floor {self.floor_ms:.3f} ms"
        lines = [f"{self.spec}", f"on {self.device}{floor}", f"runs {self.kernel}: "]
        lines[-1] += self.explanation
        lines += [f"  {candidate}" for candidate in self.candidates]
        if self.configuration is not None:
            lines.append(f"  {self.configuration}")
        return "\n".join(lines)


@contextmanager
def use_kernel(name: str) -> Iterator[None]:
    """Makes every convolution run on one family, or fail saying why it cannot.

    Args:
        name: ``direct``, or ``torch`` for PyTorch's own convolution.

    It is a switch of the whole process, as PyTorch's own are.

    Raises:
        KernelUnavailableError: no such family; and, from a convolution inside the block, the
            family cannot do it.
    """
    if name not in KERNELS:
        raise KernelUnavailableError(f"no kernel family {name!r}; there is {', '.join(KERNELS)}")
    global _requested
    before, _requested = _requested, name
    try:
        yield
    finally:
        _requested = before


def requested_kernel() -> str | None:
    """The family that ``use_kernel`` asks for, or None."""
    return _requested


@contextmanager
def simulator() -> Iterator[None]:
    """Makes convolutions of CPU tensors run ConvSmith's kernels in the simulator.

    Slow and exact: a way to see, without a GPU, what the kernels compute. No time means anything.
    """
    global _simulating
    before, _simulating = _simulating, True
    try:
        yield
    finally:
        _simulating = before


def is_simulating() -> bool:
    """Whether CPU tensors run in the simulator."""
    return _simulating


def plan(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    *,
    direction: Direction | str = Direction.FORWARD,
    kernel: str | None = None,
) -> Plan:
    """What ``conv2d`` of these tensors runs, and why: ``print(convsmith.plan(x, w))``.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as in ``conv2d``, 4-D tensors.
        direction: ``forward``, ``grad_input`` or ``grad_weight``.
        kernel: a kernel family to insist on, as ``use_kernel`` does.

    Raises:
        KernelUnavailableError: ``kernel`` cannot do it.
        ValueError: the arguments describe no convolution.
    """
    spec = ConvSpec.of(
        Direction(direction),
        input,
        weight,
        bias is not None,
        _pair(stride),
        _pair(padding),
        _pair(dilation),
        groups,
    )
    simulate = is_simulating() and input.device.type == "cpu"
    return plan_for(spec, input.device, kernel or requested_kernel(), simulate=simulate)


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value


@lru_cache(maxsize=4096)
def plan_for(
    spec: ConvSpec, device: torch.device, kernel: str | None = None, *, simulate: bool = False
) -> Plan:
    """The plan of ``spec`` on ``device``.

    Args:
        spec: the convolution.
        device: with its index, as tensors have it.
        kernel: a family to insist on.
        simulate: plan for the simulator, in which CPU tensors run ConvSmith's kernels.

    Raises:
        KernelUnavailableError: ``kernel`` cannot run ``spec`` on ``device``.
    """
    own = kernel or (direct.NAME if simulate else None)
    obstacle = _obstacle(spec, device, simulate)
    if obstacle is not None:
        if own is not None and own != TORCH:
            raise KernelUnavailableError(f"the {own} family cannot run {spec}: {obstacle}")
        return Plan(spec, str(device), (Candidate(TORCH, None, "PyTorch's own"),), obstacle, None)
    if simulate:
        configuration = direct.configure(spec, _SIMULATED_MULTIPROCESSORS)
        candidate = Candidate(direct.NAME, None, "no time is predicted", configuration)
        return Plan(spec, "the simulator", (candidate,), "the simulator runs own kernels", None)
    ceilings = ceilings_of(device)
    ranked = sorted(
        (_direct_candidate(spec, device, ceilings), _torch_candidate(spec, ceilings)),
        key=lambda candidate: _handicapped_ms(candidate),
    )
    explanation = f"predicted to be the fastest by a factor of {REQUIRED_GAIN} or more"
    if ranked[0].kernel == TORCH:
        explanation = f"no own kernel is predicted to be {REQUIRED_GAIN} times faster"
    if own is not None:
        ranked.sort(key=lambda candidate: candidate.kernel != own)
        explanation = "it was asked for by name"
    name = torch.cuda.get_device_name(device)
    return Plan(spec, name, tuple(ranked), explanation, floor_ms(spec, ceilings))


def architecture_of(device: torch.device) -> str:
    """What to compile for: ``sm_90`` and the like, as the device's compute capability says."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _obstacle(spec: ConvSpec, device: torch.device, simulate: bool) -> str | None:
    """Why no own kernel can run ``spec`` on ``device``, or None."""
    if 0 in spec.input_shape or 0 in spec.weight_shape or 0 in spec.output_shape:
        return "a tensor without elements is left to PyTorch"
    if simulate:
        return None
    if device.type != "cuda":
        return (
            f"its tensors are on {device}, and own kernels run on CUDA devices (or, with "
            "`with convsmith.simulator():`, in the simulator)"
        )
    if torch.version.hip is not None:
        return "own kernels are CUDA kernels, and this PyTorch is built for ROCm"
    if torch.cuda.get_device_capability(device) < direct.LEAST_CAPABILITY:
        return f"its GPU is older than compute capability {direct.LEAST_CAPABILITY}"
    return None


def _handicapped_ms(candidate: Candidate) -> float:
    assert candidate.predicted_ms is not None
    return candidate.predicted_ms * (1 if candidate.kernel == TORCH else REQUIRED_GAIN)


def _direct_candidate(spec: ConvSpec, device: torch.device, ceilings: Ceilings) -> Candidate:
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    configuration = direct.configure(spec, multiprocessors)
    predicted = direct.predicted_ms(spec, configuration, ceilings, multiprocessors)
    reason = (
        f"{configuration.blocks} blocks of {configuration.tile_rows} x {direct.TILE_COLUMNS}, "
        f"{configuration.terms} terms in {configuration.splits} part(s)"
    )
    return Candidate(direct.NAME, predicted, reason, configuration)


def _torch_candidate(spec: ConvSpec, ceilings: Ceilings) -> Candidate:
    """PyTorch's time, from what cuDNN and PyTorch's own kernels were measured to reach on an H200.

    The rates are the best seen of their kind, not the typical ones, so that a win is a win.
    """
    traffic_ms = spec.bytes_moved / (ceilings.copy_TBps * 1e9)
    giga_operations = spec.operations / 1e9
    if spec.is_depthwise:
        return Candidate(TORCH, 2 * traffic_ms, "depthwise, at best half the rate of memory")
    if spec.precision is Precision.FLOAT64:
        rate = ceilings.fp32_TFLOPs
        return Candidate(
            TORCH, max(traffic_ms, giga_operations / rate), "float64 on tensor cores, at their rate"
        )
    if spec.precision is not Precision.FLOAT32:
        tensor_ms = giga_operations / (0.85 * ceilings.tf32_TFLOPs)
        return Candidate(TORCH, max(traffic_ms, tensor_ms), "cuDNN on tensor cores")
    share, algorithm = _cudnn_float32_share(spec)
    compute_ms = giga_operations / (share * ceilings.fp32_TFLOPs)
    return Candidate(TORCH, max(traffic_ms, compute_ms), f"cuDNN, {algorithm}")


def _cudnn_float32_share(spec: ConvSpec) -> tuple[float, str]:
    """cuDNN's nominal rate in float32 over a matrix product's, and the algorithm behind it."""
    taps = math.prod(spec.kernel_size)
    plain = spec.stride == (1, 1) and spec.dilation == (1, 1)
    if spec.groups > 1:
        shares = {Direction.FORWARD: 0.057, Direction.GRAD_INPUT: 0.04, Direction.GRAD_WEIGHT: 0.05}
        return shares[spec.direction], "grouped"
    if taps == 1:
        return 0.65, "a matrix product"
    if taps <= 9 and plain:
        shares = {Direction.FORWARD: 1.35, Direction.GRAD_INPUT: 1.65, Direction.GRAD_WEIGHT: 2.2}
        return shares[spec.direction], "Winograd, FFT or implicit product"
    if taps <= 9:
        return 0.66, "implicit product, strided or dilated"
    filled = max(0.64, min(1.0, spec.out_channels / 128))  # of a tile of 128 output channels
    if spec.direction is Direction.FORWARD:
        return 0.72 * filled, "implicit product of more than nine taps"
    if spec.direction is Direction.GRAD_INPUT:
        if spec.stride == (1, 1) and not plain:
            return 0.4, "implicit product, dilated"
        return 1.65, "FFT or implicit product"
    return 0.63 * filled, "implicit product of more than nine taps"
