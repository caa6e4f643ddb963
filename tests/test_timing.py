"""The order and the arithmetic of timing, with a clock that counts instead of a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from convsmith import timing
from convsmith.timing import CudaClock, Timing, alternate


class Bench:
    """A clock of milliseconds that only the calls move on, and what happened in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[str] = []
        self.synchronized_at = 0.0

    def flush(self) -> None:
        self.now += 100  # must not count
        self.events.append("flush")

    def mark(self) -> float:
        return self.now

    def milliseconds(self, start: float, end: float) -> float:
        assert end <= self.synchronized_at, "read before the GPU had passed the mark"
        return end - start

    def synchronize(self) -> None:
        self.synchronized_at = self.now

    def call(self, name: str, *durations: float) -> Callable[[], None]:
        """A call that takes these times in turn, the last one for ever."""
        remaining = list(durations)

        def run() -> None:
            self.events.append(name)
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        return run

    def order(self) -> list[str]:
        return [event for event in self.events if event != "flush"]


def test_the_median_leaves_warm_ups_and_flushes_out() -> None:
    bench = Bench()
    times = alternate({"ours": bench.call("ours", 900, 5, 5, 2)}, bench)
    assert times["ours"] == Timing(2, 2, 2)
    assert bench.order() == ["ours"] * (timing.WARM_UPS + timing.REPEATS)


def test_every_call_follows_a_flush() -> None:
    bench = Bench()
    alternate({"ours": bench.call("ours", 1), "torch": bench.call("torch", 1)}, bench)
    assert bench.events[::2] == ["flush"] * (len(bench.events) // 2)
    assert "flush" not in bench.events[1::2]


def test_calls_take_turns() -> None:
    bench = Bench()
    alternate({name: bench.call(name, 1) for name in "abc"}, bench)
    timed = bench.order()[3 * timing.WARM_UPS :]
    assert timed == list("abc") * timing.REPEATS


def test_a_long_call_is_timed_less_often() -> None:
    bench = Bench()
    alternate({"short": bench.call("short", 10), "long": bench.call("long", 10.5)}, bench)
    timed = bench.order()[2 * timing.WARM_UPS :]
    assert timed.count("short") == timing.REPEATS >= 10
    assert timed.count("long") == timing.LONG_CALL_REPEATS >= 5
    assert timed[:4] == ["short", "long", "short", "long"]


def test_median_and_percentiles() -> None:
    assert Timing.of([5, 1, 2, 4, 3, 6]) == Timing(3.5, 2, 5)
    assert Timing.of([7.0, 7.0]) == Timing(7, 7, 7)


@pytest.mark.gpu
def test_cuda_events_measure_the_gpu_and_not_the_host() -> None:
    import time

    import torch

    device = torch.device("cuda")
    data = torch.randn(2**26, device=device)

    def slow_host() -> None:
        time.sleep(0.001)

    def twice() -> None:
        data.mul_(1.0).mul_(1.0)

    times = alternate(
        {"once": lambda: data.mul_(1.0), "twice": twice, "host": slow_host}, CudaClock(device)
    )
    assert times["twice"].median == pytest.approx(2 * times["once"].median, rel=0.2)
    assert times["once"].percentile_20 <= times["once"].median <= times["once"].percentile_80
