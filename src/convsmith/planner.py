"""ConvSpec -> Plan: which kernel is predicted to run a convolution fastest on a device, and why.

PyTorch's own convolution is always one of the candidates, so the plan is never slower than it as
far as the planner can tell. The plan is a function of the spec and the device alone: nothing is
timed, so the same call always takes the same kernel and gives the same bits, unless choice.py is
asked to measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch

from convsmith import pytorch_times
from convsmith.errors import KernelUnavailableError
from convsmith.kernels.families import FAMILIES
from convsmith.kernels.family import Configuration, Family
from convsmith.roofline import ceilings_of, floor_ms
from convsmith.spec import ConvSpec

TORCH = "torch"
KERNELS = (*FAMILIES, TORCH)

# An own kernel is preferred to PyTorch's only where it is predicted to win by this much:
# predictions err.
REQUIRED_GAIN = 1.03

# Few, so that a simulated weight gradient is split no more than a test needs.
_SIMULATED_MULTIPROCESSORS = 4

_BY_NAME = "it was asked for by name"

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
        configuration: how an own family cuts it into blocks.
        measured_ms: its time as choice.py measured it, or None where it did not.
    """

    kernel: str
    predicted_ms: float | None
    reason: str
    configuration: Configuration | None = None
    measured_ms: float | None = None

    def __str__(self) -> str:
        time = "    no time" if self.predicted_ms is None else f"{self.predicted_ms:8.3f} ms"
        if self.measured_ms is not None:
            time += f", measured {self.measured_ms:.3f} ms"
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
        """The name of the family that runs, or ``torch`` for PyTorch's own convolution."""
        return self.candidates[0].kernel

    @property
    def family(self) -> Family | None:
        """The family that runs; None where it is PyTorch's own convolution."""
        return FAMILIES.get(self.kernel)

    @property
    def predicted_ms(self) -> float | None:
        """Predicted time in milliseconds of the kernel that runs."""
        return self.candidates[0].predicted_ms

    @property
    def configuration(self) -> Configuration | None:
        """How the family that runs cuts ``spec`` into blocks; None for PyTorch's convolution."""
        return self.candidates[0].configuration

    @property
    def workspace_bytes(self) -> int:
        """Memory the kernel takes beside its result; PyTorch's own is not known beforehand."""
        return self.configuration.workspace_bytes if self.configuration else 0

    @property
    def source(self) -> str:
        """The CUDA C++ of the kernel that runs; empty for PyTorch's."""
        if self.family is None:
            return ""
        return self.family.source(self.spec, self.configuration).cuda

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
        name: a family's, such as ``direct``, or ``torch`` for PyTorch's own convolution.

    It is a switch of the whole process, as PyTorch's own are.

    Raises:
        KernelUnavailableError: no such family; and, from a convolution inside the block, the
            family cannot do it.
    """
    _require_known(name)
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


@lru_cache(maxsize=4096)
def plan_for(
    spec: ConvSpec, device: torch.device, kernel: str | None = None, *, simulate: bool = False
) -> Plan:
    """The plan of ``spec`` on ``device``.

    Args:
        spec: the convolution.
        device: with its index, as tensors have it.
        kernel: a family, or ``torch``, to insist on.
        simulate: plan for the simulator, in which CPU tensors run ConvSmith's kernels.

    Raises:
        KernelUnavailableError: ``kernel`` cannot run ``spec`` on ``device``, or there is none of
            this name.
    """
    if kernel is not None:
        _require_known(kernel)
    obstacles = {
        name: _obstacle(family, spec, device, simulate) for name, family in FAMILIES.items()
    }
    if kernel is not None and obstacles.get(kernel) is not None:
        raise KernelUnavailableError(f"the {kernel} family cannot run {spec}: {obstacles[kernel]}")
    able = [name for name, obstacle in obstacles.items() if obstacle is None]
    if not able:
        reasons = "; ".join(dict.fromkeys(filter(None, obstacles.values())))
        return _pytorch_plan(spec, device, reasons)
    if not simulate:
        return _ranked_plan(spec, device, able, kernel)
    if kernel == TORCH:
        return _pytorch_plan(spec, device, _BY_NAME)
    return _simulated_plan(spec, kernel or min(able, key=lambda name: FAMILIES[name].SIMULATION))


def alternatives_to(candidate: Candidate, spec: ConvSpec, device: torch.device) -> list[Candidate]:
    """``candidate``, of a plan of ``spec``, and what its family could run that is nearly as quick.

    What the planner cannot tell apart: to be measured.
    """
    if candidate.kernel == TORCH:
        return [candidate]
    configurations = FAMILIES[candidate.kernel].alternatives(spec, _multiprocessors(device))
    return [_own_candidate(candidate.kernel, spec, one, device) for one in configurations]


def architecture_of(device: torch.device) -> str:
    """What to compile for: ``sm_80`` and the like, as the device's compute capability says.

    For Hopper that is ``sm_90a``, which has its warpgroup instructions too.
    """
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")


def _require_known(kernel: str) -> None:
    if kernel not in KERNELS:
        raise KernelUnavailableError(f"no kernel family {kernel!r}; there is {', '.join(KERNELS)}")


def _obstacle(family: Family, spec: ConvSpec, device: torch.device, simulate: bool) -> str | None:
    """Why ``family`` cannot run ``spec`` on ``device``, or None."""
    if 0 in spec.input_shape or 0 in spec.weight_shape or 0 in spec.output_shape:
        return "a tensor without elements is left to PyTorch"
    if simulate:
        return family.obstacle(spec)
    if device.type != "cuda":
        return (
            f"its tensors are on {device}, and own kernels run on CUDA devices (or, with "
            "`with convsmith.simulator():`, in the simulator)"
        )
    if torch.version.hip is not None:
        return "own kernels are CUDA kernels, and this PyTorch is built for ROCm"
    capability = torch.cuda.get_device_capability(device)
    if capability < family.LEAST_CAPABILITY:
        return f"its GPU is older than compute capability {family.LEAST_CAPABILITY}"
    if capability > family.MOST_CAPABILITY:
        return f"its GPU is newer than compute capability {family.MOST_CAPABILITY}"
    return family.obstacle(spec)


def _pytorch_plan(spec: ConvSpec, device: torch.device, explanation: str) -> Plan:
    """PyTorch's convolution, where there is nothing to weigh it against."""
    candidate = Candidate(TORCH, None, "PyTorch's own")
    return Plan(spec, str(device), (candidate,), explanation, None)


def _simulated_plan(spec: ConvSpec, kernel: str) -> Plan:
    """One family in the simulator, where no time means anything."""
    configuration = FAMILIES[kernel].configure(spec, _SIMULATED_MULTIPROCESSORS)
    candidate = Candidate(kernel, None, "no time is predicted", configuration)
    return Plan(spec, "the simulator", (candidate,), "the simulator runs own kernels", None)


def _ranked_plan(
    spec: ConvSpec, device: torch.device, able: list[str], requested: str | None
) -> Plan:
    """The families that are able to and PyTorch, the one that runs first."""
    ceilings = ceilings_of(device)
    multiprocessors = _multiprocessors(device)
    candidates = [Candidate(TORCH, *pytorch_times.predict(spec, ceilings))]
    for name in able:
        configuration = FAMILIES[name].configure(spec, multiprocessors)
        candidates.append(_own_candidate(name, spec, configuration, device))
    candidates.sort(key=_handicapped_ms)
    if requested is not None:
        candidates.sort(key=lambda candidate: candidate.kernel != requested)
        explanation = _BY_NAME
    elif candidates[0].kernel == TORCH:
        explanation = f"no own kernel is predicted to be {REQUIRED_GAIN} times faster"
    else:
        explanation = f"predicted to be faster than PyTorch by a factor of {REQUIRED_GAIN} or more"
    name = torch.cuda.get_device_name(device)
    return Plan(spec, name, tuple(candidates), explanation, floor_ms(spec, ceilings))


def _own_candidate(
    name: str, spec: ConvSpec, configuration: Configuration, device: torch.device
) -> Candidate:
    """A family with one of its configurations."""
    family = FAMILIES[name]
    predicted = family.predicted_ms(
        spec, configuration, ceilings_of(device), _multiprocessors(device)
    )
    return Candidate(name, predicted, family.reason(configuration), configuration)


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _handicapped_ms(candidate: Candidate) -> float:
    assert candidate.predicted_ms is not None
    return candidate.predicted_ms * (1 if candidate.kernel == TORCH else REQUIRED_GAIN)
