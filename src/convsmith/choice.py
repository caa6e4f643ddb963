"""What runs a convolution: what the planner predicts to be the fastest, or what was measured to be.

With PyTorch's switch ``torch.backends.cudnn.benchmark`` on, by which cuDNN times its algorithms at
the first call of a kind, the first call of a kind times ConvSmith's kernels and PyTorch's
convolution as well. The fastest one runs for as long as the process lives. Where deterministic
algorithms are asked for, and with the switch off, nothing is timed: the choice is the planner's.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import torch
from torch import Tensor

from convsmith import planner, trial
from convsmith.launch import compile_ahead
from convsmith.planner import Candidate, Plan
from convsmith.spec import ConvSpec, Direction, Pair

# Measured is what is predicted to take so many times the least predicted time at most. Predictions
# of PyTorch's time are lower bounds, or nearly so, and those of own kernels err by less.
NEAR = 2.5

# By spec, device and requested kernel.
_measured: dict[tuple[ConvSpec, torch.device, str | None], Plan] = {}
_MEASURED_KEPT = 4096
_measuring = threading.Lock()  # or threads would measure each other's work


def is_measured() -> bool:
    """Whether PyTorch's switches ask for choices to be measured."""
    return torch._C._get_cudnn_benchmark() and not torch._C._get_deterministic_algorithms()


def is_put_off() -> bool:
    """Whether measuring has to wait: what a CUDA graph captures has no time.

    What runs meanwhile is not to be remembered for later calls.
    """
    if not is_measured() or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    return torch.cuda.is_current_stream_capturing()


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

    With ``torch.backends.cudnn.benchmark`` on it measures that, as the first such call would.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as in ``conv2d``, 4-D tensors.
        direction: ``forward``, ``grad_input`` or ``grad_weight``.
        kernel: what to insist on, as ``use_kernel`` does.

    Raises:
        KernelUnavailableError: ``kernel`` cannot do it, or there is none of this name.
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
    simulate = planner.is_simulating() and input.device.type == "cpu"
    wanted = kernel or planner.requested_kernel()
    return chosen_plan(spec, input.device, wanted, simulate=simulate)


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value


def chosen_plan(
    spec: ConvSpec, device: torch.device, kernel: str | None = None, *, simulate: bool = False
) -> Plan:
    """The plan that runs ``spec`` on ``device``, under PyTorch's switches of now.

    Args:
        spec, device, kernel, simulate: as of `planner.plan_for`.

    Raises:
        KernelUnavailableError: as `planner.plan_for` does.
    """
    predicted = planner.plan_for(spec, device, kernel, simulate=simulate)
    if predicted.predicted_ms is None or not is_measured():
        return predicted
    key = (spec, device, kernel)
    with _measuring:
        if key not in _measured:
            if is_put_off():
                return predicted
            if len(_measured) >= _MEASURED_KEPT:
                _measured.clear()
            _measured[key] = _measured_plan(predicted, device, kernel)
        return _measured[key]


def plans_in_question(
    spec: ConvSpec, device: torch.device, kernel: str | None = None
) -> list[Plan]:
    """The plans one of which runs where choices are measured, with one candidate each."""
    predicted = planner.plan_for(spec, device, kernel)
    return _apart(predicted, _contenders(predicted, device, kernel))


def _apart(plan: Plan, candidates: list[Candidate]) -> list[Plan]:
    return [replace(plan, candidates=(candidate,)) for candidate in candidates]


def _contenders(predicted: Plan, device: torch.device, kernel: str | None) -> list[Candidate]:
    """The candidates among which times decide; a single one needs no measuring."""
    if predicted.predicted_ms is None:
        return [predicted.candidates[0]]
    candidates = [one for one in predicted.candidates if kernel in (None, one.kernel)]
    limit = NEAR * min(map(_predicted_ms, candidates))
    return [
        alternative
        for one in candidates
        if _predicted_ms(one) <= limit
        for alternative in planner.alternatives_to(one, predicted.spec, device)
        if _predicted_ms(alternative) <= limit
    ]


def _predicted_ms(candidate: Candidate) -> float:
    assert candidate.predicted_ms is not None
    return candidate.predicted_ms


def _measured_plan(predicted: Plan, device: torch.device, kernel: str | None) -> Plan:
    """``predicted`` with the fastest contender first; as it is where there is none to be timed."""
    contenders = _contenders(predicted, device, kernel)
    if len(contenders) == 1:
        return predicted
    compile_ahead(_apart(predicted, contenders), device)
    try:
        timed = trial.measured(predicted.spec, device, contenders)
    except torch.cuda.OutOfMemoryError:
        return predicted
    if not timed:
        return predicted
    timed.sort(key=_measured_ms)
    as_predicted = [replace(one, measured_ms=None) for one in timed]
    others = [one for one in predicted.candidates if one not in as_predicted]
    explanation = "" if kernel is None else f"{predicted.explanation}, and "
    explanation += (
        f"measured to be the fastest of {len(timed)}, torch.backends.cudnn.benchmark being on"
    )
    return replace(predicted, candidates=(*timed, *others), explanation=explanation)


def _measured_ms(candidate: Candidate) -> float:
    assert candidate.measured_ms is not None
    return candidate.measured_ms
