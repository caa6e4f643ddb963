"""What a caller sees of ModelNew before it computes: signatures, parameters, weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.kernelbench.problem import describe
from convsmith.kernelbench.report import Row, Verdict
from convsmith.kernelbench.trials.subject import WEIGHT_SEED, Subject

SHOWN = 4  # names in a row


def constructor_signature(subject: Subject, test: str) -> Iterator[Row]:
    """The arguments of ``__init__``: names, order, kinds, defaults."""
    yield _same_signature(test, subject.problem.Model.__init__, subject.solution.__init__)


def forward_signature(subject: Subject, test: str) -> Iterator[Row]:
    """The arguments of ``forward``: names, order, kinds, defaults."""
    yield _same_signature(test, subject.problem.Model.forward, subject.solution.forward)


def parameters(subject: Subject, test: str) -> Iterator[Row]:
    """Parameters and buffers: names, shapes, dtypes, and whether they are trained."""
    pair = subject.pair()
    theirs, ours = _described(pair.model), _described(pair.solution)
    faults = [
        *(f"no {name}" for name in theirs if name not in ours),
        *(f"an unexpected {name}" for name in ours if name not in theirs),
        *(
            f"{name} is {ours[name]}"
            for name in theirs
            if name in ours and ours[name] != theirs[name]
        ),
    ]
    expected = _some([f"{name} {theirs[name]}" for name in theirs]) or "none"
    if faults:
        yield Row(test, Verdict.WRONG, expected, _some(faults))
    else:
        yield Row(test, Verdict.RIGHT, expected, "the same")


def state_dict(subject: Subject, test: str) -> Iterator[Row]:
    """``state_dict`` of each is loaded by the other, and loading changes the weights."""
    expected = "Model and ModelNew load each other's"
    pair = subject.pair()
    with torch.no_grad():
        for tensor in pair.model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(1)
    for source, target, words in (
        (pair.model, pair.solution, "ModelNew loading Model's"),
        (pair.solution, pair.model, "Model loading ModelNew's"),
    ):
        try:
            target.load_state_dict(source.state_dict())
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines()[1:3]]
            reason = " ".join(lines) or describe(error)
            yield Row(test, Verdict.WRONG, expected, f"{words}: {reason}")
            return
        stale = _different(source.state_dict(), target.state_dict())
        if stale:
            yield Row(test, Verdict.WRONG, expected, f"{words}: {_some(stale)} did not change")
            return
    yield Row(test, Verdict.RIGHT, expected, "they do")


def equal_weights(subject: Subject, test: str) -> Iterator[Row]:
    """From equal seeds both draw equal weights, and leave the generator in the same state."""
    expected = "the weights of Model, bit for bit"
    theirs, state = _drawn(subject, subject.problem.Model)
    ours, our_state = subject.attempt(lambda: _drawn(subject, subject.solution))
    if theirs.keys() != ours.keys():  # by place: the names have a row of their own
        ours = dict(zip(theirs, ours.values(), strict=False))
    different = _different(theirs, ours)
    if different:
        yield Row(test, Verdict.WRONG, expected, f"other values of {_some(different)}")
    elif not torch.equal(state, our_state):
        came = "equal weights, but the generator is left in another state: what is drawn next "
        yield Row(test, Verdict.WRONG, expected, came + "differs")
    else:
        yield Row(test, Verdict.RIGHT, expected, "the same")


def _same_signature(test: str, theirs: Callable[..., Any], ours: Callable[..., Any]) -> Row:
    expected, came = _signature(theirs), _signature(ours)
    verdict = Verdict.RIGHT if expected == came else Verdict.WRONG
    return Row(test, verdict, expected, came)


def _signature(function: Callable[..., Any]) -> str:
    """The arguments of a method as text, without ``self`` and without annotations."""
    signature = inspect.signature(function)
    arguments = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in list(signature.parameters.values())[1:]
    ]
    return str(inspect.Signature(arguments))


def _described(module: nn.Module) -> dict[str, str]:
    """Each parameter and buffer in words."""
    described = {
        name: f"{tuple(parameter.shape)} {_dtype(parameter)}"
        + ("" if parameter.requires_grad else ", not trained")
        for name, parameter in module.named_parameters()
    }
    for name, buffer in module.named_buffers():
        described[name] = f"{tuple(buffer.shape)} {_dtype(buffer)}, a buffer"
    return described


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _drawn(subject: Subject, cls: type[nn.Module]) -> tuple[dict[str, Tensor], Tensor]:
    """The state that a constructor draws from WEIGHT_SEED, and the generator's state after it."""
    torch.manual_seed(WEIGHT_SEED)
    module = cls(*subject.init_inputs)
    return dict(module.state_dict()), torch.get_rng_state()


def _different(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    """The names of what is not equal in both."""
    return [
        name
        for name, tensor in theirs.items()
        if name not in ours or not torch.equal(tensor.cpu(), ours[name].cpu())
    ]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
