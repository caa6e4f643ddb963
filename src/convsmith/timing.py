"""Times of calls that alternate: median, 20th and 80th percentile, in milliseconds.

Each timed call follows a flush of the L2 cache and lies between two CUDA events. All calls of a
comparison take turns in one loop, so that whatever the GPU does meanwhile happens to all of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

Call = Callable[[], object]
Mark = TypeVar("Mark")

WARM_UPS = 3
REPEATS = 15
LONG_CALL_MS = 10.0
LONG_CALL_REPEATS = 5
FLUSH_BYTES = 256 * 2**20


class Clock(Protocol[Mark]):
    """What marks points in the GPU's work. `CudaClock` is the real one."""

    def flush(self) -> None:
        """Queue work that empties the L2 cache of what earlier calls left there."""

    def mark(self) -> Mark:
        """A mark at this point of the queue."""

    def milliseconds(self, start: Mark, end: Mark) -> float:
        """The time between two marks, once the GPU has passed both."""

    def synchronize(self) -> None:
        """Wait until the GPU has passed every mark."""


class CudaClock:
    """CUDA events on the current stream of ``device``."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffer = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def flush(self) -> None:
        """Overwrite 256 MiB, more than any L2 cache holds, four times.

        Once would do for the cache. The rest (about 0.2 ms) keeps the GPU busy until the host has
        queued the call that follows; otherwise a short call's time would be the host's.
        """
        for _ in range(4):
            self._buffer.zero_()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def milliseconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return float(start.elapsed_time(end))

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)


@dataclass(frozen=True)
class Timing:
    """How long a call takes, in milliseconds."""

    median: float
    percentile_20: float
    percentile_80: float

    @classmethod
    def of(cls, samples: list[float]) -> Timing:
        """The statistics of at least two ``samples``."""
        fifths = statistics.quantiles(samples, n=5, method="inclusive")
        return cls(statistics.median(samples), fifths[0], fifths[-1])


@dataclass
class _Series(Generic[Mark]):
    """One call's marks."""

    call: Call
    repeats: int
    marks: list[tuple[Mark, Mark]]


def alternate(calls: Mapping[str, Call], clock: Clock[Mark]) -> dict[str, Timing]:
    """Time ``calls`` in turn after warming each up; the result has their names.

    Each is called REPEATS times, or LONG_CALL_REPEATS where it takes over LONG_CALL_MS.
    """
    series: dict[str, _Series[Mark]] = {
        name: _Series(call, _repeats(call, clock), []) for name, call in calls.items()
    }
    for turn in range(max(one.repeats for one in series.values())):
        for one in series.values():
            if turn < one.repeats:
                one.marks.append(_marks_around(one.call, clock))
    clock.synchronize()
    return {
        name: Timing.of([clock.milliseconds(start, end) for start, end in one.marks])
        for name, one in series.items()
    }


def _repeats(call: Call, clock: Clock[Mark]) -> int:
    """Warm ``call`` up and choose how often to time it."""
    for _ in range(WARM_UPS):
        start, end = _marks_around(call, clock)
    clock.synchronize()
    long = clock.milliseconds(start, end) > LONG_CALL_MS
    return LONG_CALL_REPEATS if long else REPEATS


def _marks_around(call: Call, clock: Clock[Mark]) -> tuple[Mark, Mark]:
    clock.flush()
    start = clock.mark()
    call()
    return start, clock.mark()
