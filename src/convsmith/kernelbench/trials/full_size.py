"""ModelNew on the problem's own inputs, however large: KernelBench's case.

Every element is compared with PyTorch's result, loosely, because both may be rounded to TF32; and a
few items of the batch with float64, as strictly as small inputs are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.kernelbench.exact import tf32_switch
from convsmith.kernelbench.judge import Finding, judge
from convsmith.kernelbench.problem import describe
from convsmith.kernelbench.report import Row, Verdict
from convsmith.kernelbench.trials.comparing import expect, row_of
from convsmith.kernelbench.trials.reuse import count_different
from convsmith.kernelbench.trials.subject import (
    INPUT_SEED,
    NotApplicableError,
    Pair,
    Result,
    Subject,
    UndecidedError,
)
from convsmith.kernelbench.trials.uses import Named, forward, training_step

RECIPE = f"torch.manual_seed({INPUT_SEED}); inputs = get_inputs()"
# Of the largest element. Two results in TF32 differ by some 4e-4 of it; a wrong element by much of
# its own size.
LOOSE = 2**-6
KERNELBENCH_TOLERANCE = 1e-4
# Elements of the inputs and outputs that are compared strictly, which are copied in float64.
STRICT_ELEMENTS = 2**28
PART_ELEMENTS = 2**27  # of a tensor that is compared in parts
TF32_ERROR = 1e-5  # an rms error above this is not float32's


def forward_of_problem(subject: Subject, test: str) -> Iterator[Row]:
    """Forward, against PyTorch, against float64, by KernelBench's rule, and a second time."""
    pair, inputs = _prepared(subject)
    pytorch = _of_model(lambda: forward(pair.model, inputs))
    came = _of_solution(subject, lambda: forward(pair.solution, inputs))
    row, findings = _loose_row(test, came, pytorch), {}
    if row.verdict is Verdict.RIGHT:
        findings = _strict_findings(subject, pair, inputs, came, pytorch)
    yield row_of(test, findings, RECIPE) if findings else row
    if row.verdict is Verdict.RIGHT:
        yield _kernelbench_rule(came, pytorch, findings)
    del pytorch
    again = _of_solution(subject, lambda: forward(pair.solution, inputs))
    expected = "the same bits"
    different = _different(came, again)
    if not different:
        yield Row(f"{test}, twice", Verdict.RIGHT, expected, "the same")
    elif not _different(forward(pair.model, inputs), forward(pair.model, inputs)):
        words = f"{different} elements differ between two calls"
        yield Row(f"{test}, twice", Verdict.WRONG, expected, words, RECIPE)


def gradients_of_problem(subject: Subject, test: str) -> Iterator[Row]:
    """Every gradient against PyTorch's."""
    pair, inputs = _prepared(subject)
    step = training_step(pair.names)

    def gradients(module: nn.Module) -> Named:
        found = step(module, inputs)
        return {name: tensor for name, tensor in found.items() if name.startswith("gradient")}

    pytorch = _of_model(lambda: gradients(pair.model))
    came = _of_solution(subject, lambda: gradients(pair.solution))
    yield _loose_row(test, came, pytorch)


def _prepared(subject: Subject) -> tuple[Pair, list[Any]]:
    if subject.simulated:
        raise NotApplicableError("too large for the simulator; other sizes are tested")
    return subject.pair().eval(), subject.full_inputs()


def _of_model(action: Callable[[], Result]) -> Result:
    try:
        with tf32_switch(True):
            return action()
    except torch.OutOfMemoryError as error:
        raise UndecidedError(f"Model needs more GPU memory: {describe(error)}") from error
    except Exception as error:
        raise NotApplicableError(f"Model itself raised {describe(error)}") from error


def _of_solution(subject: Subject, action: Callable[[], Result]) -> Result:
    subject.announce(RECIPE)
    with tf32_switch(True):
        return subject.attempt(action)


def _loose_row(test: str, came: Named, pytorch: Named) -> Row:
    """Whether all elements are PyTorch's in rough."""
    expected = f"PyTorch's within {LOOSE:.1e} of the largest"
    faults = _loose_faults(came, pytorch)
    if faults:
        return Row(test, Verdict.WRONG, expected, faults[0], RECIPE)
    return Row(test, Verdict.RIGHT, expected, "so")


def _loose_faults(came: Named, pytorch: Named) -> list[str]:
    """What of each result is not PyTorch's even in rough, in words."""
    faults = [f"{name}: there is none" for name in pytorch if name not in came]
    for name, theirs in pytorch.items():
        ours = came.get(name, theirs)
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            faults.append(
                f"{name}: {tuple(ours.shape)} {ours.dtype} instead of "
                f"{tuple(theirs.shape)} {theirs.dtype}"
            )
            continue
        limit = LOOSE * max(float(part.abs().max()) for _, part in _parts(theirs))
        for (start, mine), (_, right) in zip(_parts(ours), _parts(theirs), strict=True):
            # Written so that a NaN is a fault.
            off = ~((mine - right).abs() <= limit) & right.isfinite()
            if off.any():
                first, *rest = (int(index) for index in off.nonzero()[0])
                place = (start + first, *rest)
                faults.append(
                    f"{name} is {float(ours[place]):.6g} instead of {float(theirs[place]):.6g} at "
                    f"{place}"
                )
                break
    return faults


def _strict_findings(
    subject: Subject, pair: Pair, inputs: list[Any], came: Named, pytorch: Named
) -> dict[str, Finding]:
    """Judge a few items of the batch; none where an item's result is not its own."""
    batch = subject.full_sizes().batch
    if any(output.dim() == 0 or len(output) != batch for output in pytorch.values()):
        return {}

    def items(item: int) -> list[Any]:
        return [
            x[item : item + 1].clone() if isinstance(x, Tensor) and x.shape[:1] == (batch,) else x
            for x in inputs
        ]

    tensors = [*pytorch.values(), *(x for x in inputs if isinstance(x, Tensor))]
    in_an_item = sum(tensor.numel() for tensor in tensors) // batch
    chosen = list(dict.fromkeys((batch - 1, 0, batch // 2)))  # the last has the largest offsets
    findings = {}
    for item in chosen[: max(1, STRICT_ELEMENTS // max(1, in_an_item))]:
        try:
            expectations = expect(pair, partial(items, item), forward, tf32=True)
        except NotApplicableError:
            return {}
        for name, alone in expectations.items():
            theirs = pytorch[name][item : item + 1]
            ours = came[name][item : item + 1]
            if _loose_faults({name: alone.pytorch}, {name: theirs}):
                return {}
            called = f"{name} of item {item}"
            findings[called] = judge(called, ours, replace(alone, pytorch=theirs))
    return findings


def _kernelbench_rule(came: Named, pytorch: Named, findings: dict[str, Finding]) -> Row:
    """KernelBench's own comparison, torch.allclose with PyTorch at 1e-4, beside the verdict."""
    outside = total = 0
    for name, theirs in pytorch.items():
        for (_, mine), (_, right) in zip(_parts(came[name]), _parts(theirs), strict=True):
            allowed = KERNELBENCH_TOLERANCE * (1 + right.abs())
            outside += int((~((mine - right).abs() <= allowed)).sum())
            total += right.numel()
    measured = {"share_outside": outside / total}
    test = "KernelBench's 1e-4 rule"
    expected = "every element within 1e-4 + 1e-4 |PyTorch's|"
    if not outside:
        return Row(test, Verdict.RIGHT, expected, "so", beside=True, measured=measured)
    reason = f"{outside / total:.2%} of the elements are outside"
    theirs_rms, ours_rms = (
        max((finding.measured.get(name, 0.0) for finding in findings.values()), default=0.0)
        for name in ("torch_rms_error", "rms_error")
    )
    if theirs_rms > TF32_ERROR > ours_rms:
        reason += (
            f". PyTorch ran in TF32, with an rms error of {theirs_rms:.1e} against float64; the "
            f"solution's is {ours_rms:.1e}. An exact float32 result fails this rule"
        )
    return Row(test, Verdict.WRONG, expected, reason, beside=True, measured=measured)


def _different(first: Named, second: Named) -> int:
    """Elements of two results of equal shapes that differ."""
    return sum(
        count_different({name: mine}, {name: other})
        for name in first
        for (_, mine), (_, other) in zip(_parts(first[name]), _parts(second[name]), strict=True)
    )


def _parts(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """A tensor cut along its first axis, so that what is computed of it takes little memory."""
    if tensor.dim() == 0 or tensor.numel() <= PART_ELEMENTS:
        yield 0, tensor
        return
    step = max(1, len(tensor) * PART_ELEMENTS // tensor.numel())
    for start in range(0, len(tensor), step):
        yield start, tensor[start : start + step]
