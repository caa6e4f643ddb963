"""The error against float64 next to PyTorch's, with PyTorch's TF32 switch on and off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from convsmith.kernelbench.cases import Case, Values
from convsmith.kernelbench.exact import (
    Exactly,
    tf32_switch,
    to_bfloat16,
    to_tf32,
    to_tf32_truncated,
)
from convsmith.kernelbench.judge import Finding
from convsmith.kernelbench.report import Row, Verdict
from convsmith.kernelbench.trials.comparing import compare, exact_results, row_of
from convsmith.kernelbench.trials.subject import NotApplicableError, Pair, Subject
from convsmith.kernelbench.trials.uses import Use, forward, training_step

VALUES = (Values.RAND, Values.RANDN, Values.WIDE)
# What a wrong result is compared with, to say how its operands were probably treated.
TREATMENTS = {
    "rounded to 11 bits, as in TF32 and float16": to_tf32,
    "cut to 11 bits, as tensor cores do to raw float32": to_tf32_truncated,
    "rounded to 8 bits, as in bfloat16": to_bfloat16,
}
ALIKE = 0.5  # of the error: a result this near to that of a treatment has had it, probably


def accuracy(subject: Subject, test: str, *, tf32: bool) -> Iterator[Row]:
    """The largest errors over three kinds of values, and over the gradients."""
    pair = subject.pair().eval()
    step = training_step(pair.names)
    dtypes = {y.dtype for y in forward(pair.model, subject.case().inputs()).values()}
    if tf32 and torch.float32 not in dtypes:
        raise NotApplicableError("TF32 is for float32, and no output is")
    uses = [(subject.case(values=values), forward) for values in VALUES]
    findings: list[Finding] = []
    for case, use in [*uses, (subject.case(), step)]:
        try:
            found = compare(subject, pair, case, use, tf32=tf32)
        except NotApplicableError:  # a Model without gradients
            continue
        row = row_of(test, found, str(case))
        if row.verdict is Verdict.WRONG:
            yield row
            if row.measured:  # else there is something else wrong than numbers
                wrong = [name for name in found if found[name].verdict is Verdict.WRONG]
                treatment = _treatment(subject, pair, case, use, wrong[0], tf32=tf32)
                yield replace(row, came=row.came + treatment)
            return
        findings.extend(found.values())
    yield _summary(test, findings)


def _summary(test: str, findings: list[Finding]) -> Row:
    """A right row with the largest of each error."""
    measured: dict[str, float] = {}
    for finding in findings:
        for name, value in finding.measured.items():
            measured[name] = max(value, measured.get(name, 0.0))
    if not measured:
        raise NotApplicableError("Model gives no floating-point numbers")
    theirs = f"rms {measured['torch_rms_error']:.1e}, max {measured['torch_max_error']:.1e}"
    ours = f"rms {measured['rms_error']:.1e}, max {measured['max_error']:.1e}"
    return Row(test, Verdict.RIGHT, f"errors like PyTorch's: {theirs}", ours, measured=measured)


def _treatment(subject: Subject, pair: Pair, case: Case, use: Use, name: str, *, tf32: bool) -> str:
    """How the operands of a wrong tensor were probably treated, as the end of a sentence."""
    with tf32_switch(tf32):
        came = subject.attempt(lambda: use(pair.solution, case.inputs()))
    exact = exact_results(pair, case.inputs(), use, Exactly())
    error = _distance(came[name], exact[name])
    distances = {
        words: _distance(came[name], exact_results(pair, case.inputs(), use, Exactly(treat))[name])
        for words, treat in TREATMENTS.items()
    }
    words = min(distances, key=lambda words: distances[words])
    if not distances[words] <= ALIKE * error:
        return ""
    ignored = "" if tf32 else "; PyTorch's TF32 switch is off in this test"
    return f"; it is as if operands were {words}{ignored}"


def _distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first.detach().double() - second.detach()).norm())
