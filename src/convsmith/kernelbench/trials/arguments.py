"""The constructor's other arguments: stride, padding, dilation, groups, bias."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from convsmith.kernelbench.report import Row, Verdict
from convsmith.kernelbench.trials.comparing import rows_of_case
from convsmith.kernelbench.trials.subject import (
    DeviceLostError,
    NotApplicableError,
    Sizes,
    SolutionError,
    Subject,
)
from convsmith.kernelbench.trials.uses import training_step

# An argument is varied by the word its name starts with: stride, stride_h, padding, …
VARIED = ("stride", "padding", "dilation", "groups", "bias")


def other_arguments(subject: Subject, test: str) -> Iterator[Row]:
    """A row for each other value of each argument, and one for all of them changed together."""
    values = subject.arguments().arguments
    names = [name for name in values if name.split("_")[0] in VARIED]
    if not names:
        raise NotApplicableError(f"Model takes none of {', '.join(VARIED)}")
    together: dict[str, Any] = {}
    for name in names:
        for value in _other_values(name, values[name]):
            if _fitting(subject, {name: value}) is None:
                continue
            yield from _rows(subject, {name: value})
            if _fitting(subject, together | {name: value}) is not None:
                together[name] = value
    if len(together) > 1:
        yield from _rows(subject, together)


def _rows(subject: Subject, changed: Mapping[str, Any]) -> Iterator[Row]:
    """Forward and gradients of modules built with other arguments."""
    test = f"with {', '.join(f'{name}={value}' for name, value in changed.items())}"
    sizes = _fitting(subject, changed)
    try:
        pair = subject.pair(_arguments(subject, changed))
    except DeviceLostError:
        raise
    except SolutionError as error:
        yield Row(test, Verdict.WRONG, "a ModelNew of these arguments", str(error))
        return
    step = training_step(pair.names)
    yield from rows_of_case(subject, test, pair, step, subject.case, sizes=sizes)


def _fitting(subject: Subject, changed: Mapping[str, Any]) -> Sizes | None:
    """Sizes that a Model of these arguments accepts; None where there is no such Model."""
    try:
        return subject.fitting(subject.model(_arguments(subject, changed)))
    except Exception:
        return None


def _arguments(subject: Subject, changed: Mapping[str, Any]) -> inspect.BoundArguments:
    bound = subject.arguments()
    bound.arguments.update(changed)
    return bound


def _other_values(name: str, value: Any) -> list[Any]:
    """Values to try in the place of ``value``; Model may refuse some."""
    if isinstance(value, bool):
        return [not value]
    kind = name.split("_")[0]
    if kind == "groups":
        return [2, 3] if value == 1 else [1]
    first = value[0] if isinstance(value, (tuple, list)) else value
    if not isinstance(first, int):
        return []
    other = first + 1
    return [other, (other + 1, other)]
