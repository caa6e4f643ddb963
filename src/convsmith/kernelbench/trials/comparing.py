"""One case, three modules, one row: ModelNew against Model in float64, next to Model as it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from convsmith.kernelbench.cases import Case
from convsmith.kernelbench.exact import Exactly, tf32_switch, to_tf32
from convsmith.kernelbench.judge import Expectation, Finding, judge
from convsmith.kernelbench.problem import describe
from convsmith.kernelbench.report import Row, Verdict
from convsmith.kernelbench.trials.subject import (
    DeviceLostError,
    NotApplicableError,
    Pair,
    Sizes,
    SolutionError,
    Subject,
    UndecidedError,
)
from convsmith.kernelbench.trials.uses import Named, Use, is_floating

SHRINK_TRIES = 24  # sizes tried along each axis


def compare(
    subject: Subject,
    pair: Pair,
    case: Case,
    use: Use,
    *,
    tf32: bool = True,
    solution_use: Use | None = None,
) -> dict[str, Finding]:
    """Use the three modules on a case and judge each tensor that comes of it.

    Args:
        subject, pair, case: what is compared, and on what.
        use: how the modules are used.
        tf32: PyTorch's TF32 switch, for Model and for ModelNew.
        solution_use: how ModelNew is used, where that differs.

    Raises:
        NotApplicableError: Model itself raises.
        SolutionError: ModelNew raises.
    """
    expectations = expect(pair, case.inputs, use, tf32=tf32)
    subject.announce(str(case))
    with tf32_switch(tf32), unchanged_buffers(pair.solution):
        came = subject.attempt(lambda: (solution_use or use)(pair.solution, case.inputs()))
    return judge_all(came, expectations)


def expect(
    pair: Pair, inputs: Callable[[], list[Any]], use: Use, *, tf32: bool
) -> dict[str, Expectation]:
    """What a right solution gives; see `compare`. Each module gets ``inputs()`` of its own."""
    try:
        with tf32_switch(tf32), unchanged_buffers(pair.model):
            pytorch = use(pair.model, inputs())
    except torch.OutOfMemoryError as error:
        raise UndecidedError(f"not enough GPU memory for Model: {describe(error)}") from error
    except Exception as error:
        raise NotApplicableError(f"Model itself raised {describe(error)}") from error
    plain = Exactly()
    try:
        exact = exact_results(pair, inputs(), use, plain)
        rounded = exact_results(pair, inputs(), use, Exactly(to_tf32)) if tf32 else {}
    except Exception as error:
        raise UndecidedError(f"Model does not run in float64: {describe(error)}") from error
    return {
        name: Expectation(exact[name], rounded.get(name), theirs.detach(), plain.terms)
        for name, theirs in pytorch.items()
    }


def exact_results(pair: Pair, inputs: list[Any], use: Use, exactly: Exactly) -> Named:
    """What Model gives in float64."""
    in_double = [x.double() if is_floating(x) else x for x in inputs]
    with unchanged_buffers(pair.exact), exactly:
        return {name: tensor.detach() for name, tensor in use(pair.exact, in_double).items()}


@contextmanager
def unchanged_buffers(module: nn.Module) -> Iterator[None]:
    """Give a module's buffers their values back, so that every use starts from the same."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, values in kept:
            buffer.copy_(values)


def judge_all(came: Named, expectations: dict[str, Expectation]) -> dict[str, Finding]:
    """Judge each tensor; one that is missing is wrong."""
    return {
        name: judge(name, came[name], expectation)
        if name in came
        else Finding(Verdict.WRONG, name, f"{name}: there is none")
        for name, expectation in expectations.items()
    }


def rows_of_case(
    subject: Subject,
    test: str,
    pair: Pair,
    use: Use,
    make: Callable[[Sizes], Case],
    *,
    sizes: Sizes | None = None,
    tf32: bool = True,
    solution_use: Use | None = None,
) -> Iterator[Row]:
    """The row of one comparison; where it is wrong, the row again with the smallest such input.

    Args:
        test: the row's name.
        make: the case of given sizes.
        sizes: those to start with, the usual small ones by default.
        subject, pair, use, tf32, solution_use: as for `compare`.
    """

    def row(sizes: Sizes) -> Row:
        case = make(sizes)
        try:
            findings = compare(subject, pair, case, use, tf32=tf32, solution_use=solution_use)
        except DeviceLostError:
            raise
        except SolutionError as error:
            return Row(test, Verdict.WRONG, "runs, as Model does", str(error), str(case))
        return row_of(test, findings, str(case))

    first = row(sizes or subject.sizes)
    yield first
    if first.verdict is Verdict.WRONG:
        started = time.monotonic()
        yield _smallest(first, row, sizes or subject.sizes, started + subject.seconds_to_shrink)
        subject.seconds_to_shrink -= time.monotonic() - started


def up_to_first_wrong(attempts: Iterable[Iterator[Row]]) -> Iterator[Row]:
    """The rows of several attempts at one test, each of which must be right."""
    for rows in attempts:
        for row in rows:
            yield row
        if row.verdict is Verdict.WRONG:
            return


def _smallest(found: Row, row: Callable[[Sizes], Row], sizes: Sizes, until: float) -> Row:
    """The wrong row of the smallest sizes that show it, tried until a time."""
    for axis in ("batch", "height", "width"):
        largest = getattr(sizes, axis)
        for size in range(1, min(largest, SHRINK_TRIES)):
            if time.monotonic() > until:
                return found
            smaller = replace(sizes, **{axis: size})
            try:
                tried = row(smaller)
            except (NotApplicableError, UndecidedError):
                continue
            if tried.verdict is Verdict.WRONG:
                found, sizes = tried, smaller
                break
    return found


def row_of(test: str, findings: dict[str, Finding], smallest: str = "") -> Row:
    """A row of several findings: the first that is wrong, else the one of the largest error."""
    wrong = [finding for finding in findings.values() if finding.verdict is Verdict.WRONG]
    largest = max(findings.values(), key=lambda finding: finding.measured.get("rms_error", 0.0))
    shown = wrong[0] if wrong else largest
    return Row(
        test,
        shown.verdict,
        shown.expected,
        shown.came,
        smallest if wrong else "",
        measured=shown.measured,
    )
