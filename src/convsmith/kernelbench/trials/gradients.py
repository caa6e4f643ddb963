"""ModelNew in training: every gradient against Model's, in the ways that training asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from convsmith.kernelbench.cases import Layout
from convsmith.kernelbench.report import Row, Verdict
from convsmith.kernelbench.trials.comparing import compare, row_of, rows_of_case, up_to_first_wrong
from convsmith.kernelbench.trials.subject import Subject
from convsmith.kernelbench.trials.uses import (
    Named,
    Upstream,
    Use,
    backward,
    forward,
    gradients,
    is_floating,
    outputs,
    training_step,
)

MOST_ROWS = 6  # gradients that have a row of their own
DROPOUT_SEED = 5


def each_gradient(subject: Subject, test: str) -> Iterator[Row]:
    """A row for the gradient of each input and parameter, from a random upstream gradient."""
    pair, case = subject.pair(), subject.case()
    step = training_step(pair.names)
    findings = compare(subject, pair, case, step)
    names = [name for name in findings if name.startswith("gradient")]
    groups = {name: [name] for name in names[:MOST_ROWS]}
    if rest := names[MOST_ROWS:]:
        groups[f"the other {len(rest)} gradients"] = rest
    for title, members in groups.items():
        row = row_of(title, {name: findings[name] for name in members}, str(case))
        yield row
        if row.verdict is Verdict.WRONG:  # again, for the smallest input
            yield from rows_of_case(subject, title, pair, _only(members, step), subject.case)


def _only(names: list[str], step: Use) -> Use:
    """``step`` with some of its results."""

    def use(module: nn.Module, inputs: list[Any]) -> Named:
        found = step(module, inputs)
        return {name: found[name] for name in names if name in found}

    return use


def input_layouts(subject: Subject, test: str) -> Iterator[Row]:
    """Gradients of inputs that lie in memory in other ways than usual."""
    pair = subject.pair()
    step = training_step(pair.names)
    yield from up_to_first_wrong(
        rows_of_case(subject, test, pair, step, partial(subject.case, layout=layout))
        for layout in Layout
        if layout is not Layout.CONTIGUOUS
    )


def upstream_layouts(subject: Subject, test: str) -> Iterator[Row]:
    """Upstream gradients that are expanded, as that of a mean is, or channels last."""
    pair = subject.pair()
    yield from up_to_first_wrong(
        rows_of_case(subject, test, pair, training_step(pair.names, upstream=layout), subject.case)
        for layout in (Upstream.EXPANDED, Upstream.CHANNELS_LAST)
    )


def only_some_gradients(subject: Subject, test: str) -> Iterator[Row]:
    """Gradients of the parameters alone (a first layer), and of the input alone (frozen)."""
    pair = subject.pair()
    uses = [training_step(pair.names, of_parameters=False)]
    if list(pair.model.parameters()):
        uses.append(training_step(pair.names, of_inputs=False))
    yield from up_to_first_wrong(
        rows_of_case(subject, test, pair, use, subject.case) for use in uses
    )


def twice_in_one_graph(subject: Subject, test: str) -> Iterator[Row]:
    """The module is used on two inputs, then one backward pass goes through both uses."""
    pair = subject.pair()

    def use(module: nn.Module, inputs: list[Any]) -> Named:
        module.zero_grad()
        leaves = [x.detach().requires_grad_() if is_floating(x) else x for x in inputs]
        other = [x.roll(1, -1) * 0.5 if is_floating(x) else x for x in leaves]
        backward(outputs((module(*leaves), module(*other))))
        return gradients(module, leaves, pair.names)

    yield from rows_of_case(subject, test, pair, use, subject.case)


def training_mode(subject: Subject, test: str) -> Iterator[Row]:
    """In training mode: the output, and the buffers that it leaves behind."""

    def use(module: nn.Module, inputs: list[Any]) -> Named:
        torch.manual_seed(DROPOUT_SEED)
        found = forward(module, inputs)
        buffers = {
            f"buffer {name}": buffer.clone()
            for name, buffer in module.named_buffers()
            if buffer.is_floating_point()
        }
        return found | buffers

    yield from rows_of_case(subject, test, subject.pair(), use, subject.case)
