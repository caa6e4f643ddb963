"""What ModelNew computes: other values, sizes, layouts, another stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from convsmith.kernelbench.cases import Case, Layout, Values
from convsmith.kernelbench.report import Row
from convsmith.kernelbench.trials.comparing import rows_of_case, up_to_first_wrong
from convsmith.kernelbench.trials.subject import NotApplicableError, Sizes, Subject
from convsmith.kernelbench.trials.uses import Named, forward, is_floating, training_step

ITEMS_WITH_SPECIALS = 4  # NaN, inf and -inf in one item each, none in the last
# Long enough (some 50 ms) for work put on the wrong stream to be done before what it waits for.
SLEEP_CYCLES = 100_000_000


def forward_of_values(subject: Subject, test: str, values: Values) -> Iterator[Row]:
    """Forward on inputs drawn in one way."""
    make = partial(subject.case, values=values)
    yield from rows_of_case(subject, test, subject.pair().eval(), forward, make)


def forward_of_specials(subject: Subject, test: str) -> Iterator[Row]:
    """Forward on inputs with a NaN and infinities, which come out where IEEE puts them."""

    def make(sizes: Sizes) -> Case:
        enough = replace(sizes, batch=max(sizes.batch, ITEMS_WITH_SPECIALS))
        return subject.case(enough, special=True)

    yield from rows_of_case(subject, test, subject.pair().eval(), forward, make)


def forward_of_layout(subject: Subject, test: str, layout: Layout) -> Iterator[Row]:
    """Forward of inputs that lie in memory in one way."""
    if layout is Layout.CHANNELS_LAST and len(subject.main_shape) != 4:
        raise NotApplicableError("the input has not four axes")
    make = partial(subject.case, layout=layout)
    yield from rows_of_case(subject, test, subject.pair().eval(), forward, make)


def forward_of_batches(subject: Subject, test: str) -> Iterator[Row]:
    """Forward of other batches than the problem's."""
    small = subject.sizes
    yield from _all_of(subject, test, [replace(small, batch=batch) for batch in (1, 3, 5)])


def forward_of_sizes(subject: Subject, test: str) -> Iterator[Row]:
    """Forward of other heights and widths than the problem's: odd, tall, wide, larger."""
    batch, height, width = subject.sizes.batch, subject.sizes.height, subject.sizes.width
    sizes = [
        Sizes(batch, height + 1, width + 2),
        Sizes(batch, width, height),
        Sizes(batch, 2 * height + 3, width + 1),
        Sizes(batch, height, 4 * width + 1),
    ]
    if not subject.simulated:
        sizes.append(Sizes(1, 4 * height + 3, 8 * width + 5))
    yield from _all_of(subject, test, sizes)


def _all_of(subject: Subject, test: str, many: list[Sizes]) -> Iterator[Row]:
    """One row of several sizes: it is right as long as all are that Model accepts."""
    pair = subject.pair().eval()
    accepted = [sizes for sizes in many if subject.accepts(pair.model, sizes)]
    if not accepted:
        raise NotApplicableError("Model accepts no other sizes")
    yield from up_to_first_wrong(
        rows_of_case(subject, test, pair, forward, subject.case, sizes=sizes) for sizes in accepted
    )


def on_another_stream(subject: Subject, test: str) -> Iterator[Row]:
    """Forward and backward on a stream that is still busy making their input."""
    if subject.device.type != "cuda":
        raise NotApplicableError(f"{subject.device.type} has no streams")
    pair = subject.pair()
    step = training_step(pair.names)

    def use(module: nn.Module, inputs: list[Any]) -> Named:
        late = [torch.full_like(x, torch.nan) if is_floating(x) else x for x in inputs]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
            for target, source in zip(late, inputs, strict=True):
                if is_floating(target):
                    target.copy_(source)
            found = step(module, late)
        stream.synchronize()
        return found

    yield from rows_of_case(subject, test, pair, use, subject.case)
