"""ModelNew called more than once: what it may not keep from one call to the next."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.kernelbench.report import Row, Verdict
from convsmith.kernelbench.trials.comparing import rows_of_case, up_to_first_wrong
from convsmith.kernelbench.trials.subject import NotApplicableError, Pair, Subject
from convsmith.kernelbench.trials.uses import Named, Use, forward, is_floating

BEFORE, AFTER = 3, 4  # seeds of weights


def twice_in_a_row(subject: Subject, test: str) -> Iterator[Row]:
    """Two calls on the same input give the same bits."""
    pair, case = subject.pair().eval(), subject.case()

    def twice(module: nn.Module) -> list[Named]:
        both = [case.inputs(), case.inputs()]  # drawn before, as drawing sets the seed
        return [forward(module, inputs) for inputs in both]

    if not equal_bits(*twice(pair.model)):
        raise NotApplicableError("Model itself gives other bits at each call")
    subject.announce(str(case))
    first, second = subject.attempt(lambda: twice(pair.solution))
    expected = "the same bits"
    if equal_bits(first, second):
        yield Row(test, Verdict.RIGHT, expected, "the same")
    else:
        came = f"{count_different(first, second)} elements differ between two calls"
        yield Row(test, Verdict.WRONG, expected, came, str(case))


def same_address_new_contents(subject: Subject, test: str) -> Iterator[Row]:
    """The input's memory is filled anew: the result is that of the new contents."""

    def use(module: nn.Module, inputs: list[Any]) -> Named:
        reused = [other_contents(x) for x in inputs]
        forward(module, reused)
        for target, source in zip(reused, inputs, strict=True):
            if is_floating(target):
                # Through .data the version that autograd counts stays, as it does when a kernel
                # of someone else's writes there, or another tensor gets the same memory.
                target.data.copy_(source)
        return forward(module, reused)

    yield from rows_of_case(subject, test, subject.pair().eval(), use, subject.case)


def earlier_result_kept(subject: Subject, test: str) -> Iterator[Row]:
    """A result stays what it is when the module is called again."""

    def use(module: nn.Module, inputs: list[Any]) -> Named:
        kept = forward(module, inputs)
        forward(module, [other_contents(x) for x in inputs])
        return kept

    yield from rows_of_case(subject, test, subject.pair().eval(), use, subject.case)


def changed_weights(subject: Subject, test: str) -> Iterator[Row]:
    """Weights changed after a call, in place or by new parameters, are used by the next."""
    pair = subject.pair().eval()
    if not list(pair.model.parameters()):
        raise NotApplicableError("Model has no parameters")

    def changed(replaced: bool) -> Use:
        def use(module: nn.Module, inputs: list[Any]) -> Named:
            _set_weights(module, pair, BEFORE)
            forward(module, inputs)
            if replaced:
                _replace_parameters(module)
            _set_weights(module, pair, AFTER)
            return forward(module, inputs)

        return use

    yield from up_to_first_wrong(
        rows_of_case(subject, test, pair, changed(replaced), subject.case)
        for replaced in (False, True)
    )


def _set_weights(module: nn.Module, pair: Pair, seed: int) -> None:
    """Write into each parameter, in place, values that depend on its name, its shape and ``seed``.

    The three modules get the same.
    """
    for name, parameter in zip(pair.names(module), module.parameters(), strict=True):
        generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)


def _replace_parameters(module: nn.Module) -> None:
    """Put a new parameter in the place of each."""
    for name, parameter in list(module.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, nn.Parameter(parameter.detach().clone()))


def other_contents(value: Any) -> Any:
    """A tensor like ``value`` with other numbers; what is no such tensor stays."""
    return (0.5 - value).detach() if is_floating(value) else value


def equal_bits(first: Named, second: Named) -> bool:
    """Whether two results are the same to the last bit, NaN included."""
    return first.keys() == second.keys() and count_different(first, second) == 0


def count_different(first: Named, second: Named) -> int:
    """How many elements differ; every element of tensors that cannot be compared."""
    return sum(_different(first[name], second[name]) for name in first.keys() & second.keys())


def _different(first: Tensor, second: Tensor) -> int:
    if first.shape != second.shape or first.dtype != second.dtype:
        return first.numel()
    return int(((first != second) & ~(first.isnan() & second.isnan())).sum())
