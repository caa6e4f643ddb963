"""What ModelNew does to memory: its arguments, and what lies beside its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.kernelbench.guards import Block, GuardedAllocations, guarded
from convsmith.kernelbench.problem import describe
from convsmith.kernelbench.report import Row, Verdict
from convsmith.kernelbench.trials.comparing import compare
from convsmith.kernelbench.trials.reuse import count_different
from convsmith.kernelbench.trials.subject import (
    DeviceLostError,
    NotApplicableError,
    SolutionError,
    Subject,
)
from convsmith.kernelbench.trials.uses import Named, Use, is_floating, training_step


def arguments_unchanged(subject: Subject, test: str) -> Iterator[Row]:
    """Forward and backward change neither the inputs nor the weights."""
    pair, case = subject.pair(), subject.case()
    step = training_step(pair.names)
    try:
        changed = _changed_by(step, pair.model, case.inputs())
    except Exception as error:
        raise NotApplicableError(f"Model itself raised {describe(error)}") from error
    if changed:
        raise NotApplicableError(f"Model itself changes {changed[0]}")
    subject.announce(str(case))
    changed = subject.attempt(lambda: _changed_by(step, pair.solution, case.inputs()))
    expected = "the input and the weights as they were"
    if changed:
        yield Row(test, Verdict.WRONG, expected, f"it changed {', '.join(changed)}", str(case))
    else:
        yield Row(test, Verdict.RIGHT, expected, "unchanged")


def _changed_by(use: Use, module: nn.Module, inputs: list[Any]) -> list[str]:
    """The names of the inputs and parameters that a use of the module changes."""
    held = _held(module, inputs)
    before = {name: tensor.clone() for name, tensor in held.items()}
    use(module, inputs)
    after = {name: tensor.detach() for name, tensor in held.items()}
    return [n for n in held if count_different({n: before[n]}, {n: after[n]})]


def _held(module: nn.Module, inputs: list[Any]) -> Named:
    """What a module is given: its inputs and its parameters, by name."""
    named = {f"input {place}": x for place, x in enumerate(inputs) if isinstance(x, Tensor)}
    return named | dict(module.named_parameters())


def writes_outside(subject: Subject, test: str) -> Iterator[Row]:
    """Forward and backward write only into what they made, and all of that."""
    pair, case = subject.pair(), subject.case()
    step = training_step(pair.names)
    blocks: list[Block] = []

    def use(module: nn.Module, inputs: list[Any]) -> Named:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.data, block = guarded(parameter.data, name)
                blocks.append(block)
        placed = []
        for place, x in enumerate(inputs):
            if is_floating(x):
                x, block = guarded(x, f"input {place}")
                blocks.append(block)
            placed.append(x)
        mode = GuardedAllocations(subject.device)
        with mode:
            found = step(module, placed)
        blocks.extend(mode.blocks)
        return found

    expected = "no byte beside a tensor changed, every element of the results written"
    try:
        findings = compare(subject, pair, case, step, solution_use=use)
    except DeviceLostError:
        raise
    except SolutionError as error:
        subject.attempt(lambda: step(subject.pair().solution, case.inputs()))
        raise NotApplicableError(
            f"it does not run while its allocations are watched: {error}"
        ) from error
    faults = [f"it {damage}" for damage in (block.damage() for block in blocks) if damage]
    # Wrong numbers have rows of their own; here they matter where they come of the poison.
    faults += [
        f"with NaN beside its input and in what it allocates, {finding.came}"
        for finding in findings.values()
        if finding.misplaced
    ]
    if faults:
        yield Row(test, Verdict.WRONG, expected, faults[0], str(case))
    else:
        yield Row(test, Verdict.RIGHT, expected, f"so for {len(blocks)} tensors")
