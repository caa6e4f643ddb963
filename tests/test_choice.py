"""What runs where choices are measured, on a GPU and with times that only the test sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from planning import H200, StubFamily, spec
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import convsmith
from convsmith import choice, execute, functional, planner, trial
from convsmith.errors import KernelUnavailableError
from convsmith.planner import Candidate, Plan
from convsmith.spec import ConvSpec, Precision

WANTED = spec((8, 64, 512, 256), 128, (5, 7), precision=Precision.TF32)
TORCH_MS = 1.0


class Stopwatch:
    """What was timed, in turn, by the candidates' reasons; and the times that it tells.

    Attributes:
        times: by reason, where they are not as predicted.
        broken: reasons of what cannot run.
        fails_with: what timing raises.
    """

    def __init__(self) -> None:
        self.trials: list[list[str]] = []
        self.times: dict[str, float] = {}
        self.broken: set[str] = set()
        self.fails_with: Exception | None = None

    def measured(
        self, spec: ConvSpec, device: torch.device, candidates: Sequence[Candidate]
    ) -> list[Candidate]:
        self.trials.append([one.reason for one in candidates])
        if self.fails_with is not None:
            raise self.fails_with
        return [
            replace(one, measured_ms=self.times.get(one.reason, one.predicted_ms))
            for one in candidates
            if one.reason not in self.broken
        ]


@pytest.fixture
def stopwatch(capability: list[int], monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    """Families and a PyTorch of invented times, cudnn.benchmark being on."""
    stubs = [
        StubFamily("wide", 0.8 * TORCH_MS, 0.9 * TORCH_MS),
        StubFamily("near", 1.9 * TORCH_MS),
        StubFamily("far", 2.1 * TORCH_MS),
        StubFamily("never", 0.1 * TORCH_MS, obstacle="it has too many channels"),
    ]
    monkeypatch.setattr(planner, "FAMILIES", {stub.NAME: stub for stub in stubs})
    monkeypatch.setattr(planner, "KERNELS", (*(stub.NAME for stub in stubs), "torch"))
    monkeypatch.setattr(planner.pytorch_times, "predict", lambda *_: (TORCH_MS, "as PyTorch"))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    stopwatch = Stopwatch()
    monkeypatch.setattr(trial, "measured", stopwatch.measured)
    monkeypatch.setattr(choice, "compile_ahead", lambda plans, device: None)
    return stopwatch


def chosen(kernel: str | None = None) -> Plan:
    return choice.chosen_plan(WANTED, H200, kernel)


CONTENDERS = ["as wide on 132", "as wide on 132 in way 2", "as PyTorch", "as near on 132"]


@pytest.mark.parametrize("fastest", CONTENDERS)
def test_the_fastest_as_measured_runs(fastest: str, stopwatch: Stopwatch) -> None:
    """PyTorch's convolution, or another configuration of a family than the planner's."""
    stopwatch.times[fastest] = 0.5
    plan = chosen()
    first = plan.candidates[0]
    assert (first.reason, first.measured_ms) == (fastest, 0.5)
    assert stopwatch.trials == [CONTENDERS]
    assert plan.explanation == (
        "measured to be the fastest of 4, torch.backends.cudnn.benchmark being on"
    )
    assert plan.predicted_ms == first.predicted_ms != 0.5
    assert plan.family is planner.FAMILIES.get(plan.kernel)


def test_candidates_are_in_the_order_of_their_times_and_the_measured_ones_first(
    stopwatch: Stopwatch,
) -> None:
    stopwatch.times = dict(zip(CONTENDERS, (9.0, 7.0, 8.0, 6.0), strict=True))
    plan = chosen()
    assert [(one.reason, one.measured_ms) for one in plan.candidates] == [
        ("as near on 132", 6.0),
        ("as wide on 132 in way 2", 7.0),
        ("as PyTorch", 8.0),
        ("as wide on 132", 9.0),
        ("as far on 132", None),
    ]
    lines = str(plan).splitlines()
    assert "  near        1.900 ms, measured 6.000 ms  as near on 132" in lines
    assert "  far         2.100 ms  as far on 132" in lines


def test_a_kind_of_convolution_is_measured_once(stopwatch: Stopwatch) -> None:
    assert chosen() is chosen()
    choice.chosen_plan(spec((8, 64, 512, 256), 128, (5, 5)), H200)
    assert stopwatch.trials == [CONTENDERS] * 2


def test_with_the_switch_off_nothing_is_timed(
    stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after such a call was measured, and the other way round."""
    stopwatch.times["as PyTorch"] = 0.5
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(torch.backends.cudnn, "benchmark", False)
            assert chosen() == planner.plan_for(WANTED, H200)
            assert chosen().kernel == "wide"
        assert chosen().kernel == "torch"
    assert stopwatch.trials == [CONTENDERS]


def test_where_deterministic_algorithms_are_asked_for_nothing_is_timed(
    stopwatch: Stopwatch,
) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert chosen() == planner.plan_for(WANTED, H200)
    finally:
        torch.use_deterministic_algorithms(False)
    assert stopwatch.trials == []


def test_of_a_kernel_that_is_asked_for_only_the_configurations_are_timed(
    stopwatch: Stopwatch,
) -> None:
    stopwatch.times["as wide on 132 in way 2"] = 0.5
    plan = chosen("wide")
    assert plan.configuration == "wide on 132 in way 2"
    assert stopwatch.trials == [CONTENDERS[:2]]
    assert plan.explanation.startswith("it was asked for by name, and measured to be the fastest")
    with pytest.raises(KernelUnavailableError, match="too many channels"):
        chosen("never")


@pytest.mark.parametrize("kernel", ["far", "torch"])
def test_a_single_contender_is_not_timed(kernel: str, stopwatch: Stopwatch) -> None:
    assert chosen(kernel) == planner.plan_for(WANTED, H200, kernel)
    assert stopwatch.trials == []


def test_what_cannot_run_does_not(stopwatch: Stopwatch) -> None:
    stopwatch.broken = {"as wide on 132"}
    plan = chosen()
    assert plan.configuration == "wide on 132 in way 2"
    assert "the fastest of 3" in plan.explanation


@pytest.mark.parametrize("failure", ["out of memory", "nothing can run"])
def test_where_nothing_can_be_timed_the_predicted_plan_is_kept(
    failure: str, stopwatch: Stopwatch
) -> None:
    if failure == "out of memory":
        stopwatch.fails_with = torch.cuda.OutOfMemoryError()
    else:
        stopwatch.broken = set(CONTENDERS)
    for _ in range(2):
        assert chosen() == planner.plan_for(WANTED, H200)
    assert len(stopwatch.trials) == 1


def test_the_simulator_and_the_cpu_time_nothing(stopwatch: Stopwatch) -> None:
    cpu = torch.device("cpu")
    assert choice.chosen_plan(WANTED, cpu).kernel == "torch"
    assert choice.chosen_plan(WANTED, cpu, simulate=True).kernel == "wide"
    assert stopwatch.trials == []


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a CUDA graph is being captured: the last one of this list."""
    state = [True]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state[-1])
    return state


def test_while_a_graph_is_captured_the_predicted_plan_runs(
    stopwatch: Stopwatch, capturing: list[bool]
) -> None:
    """Unless such a convolution has been measured before."""
    stopwatch.times["as PyTorch"] = 0.5
    for state, kernel in ((True, "wide"), (False, "torch"), (True, "torch")):
        capturing.append(state)
        assert chosen().kernel == kernel
    assert stopwatch.trials == [CONTENDERS]


@pytest.fixture
def memories() -> Iterator[tuple[dict[object, object], ...]]:
    """What is remembered of calls, empty at the beginning."""
    memories = (execute._launches, functional._routes)
    for memory in memories:
        memory.clear()
    yield memories
    for memory in memories:
        memory.clear()


def operands() -> list[Tensor]:
    return [torch.randn(shape) for shape in ((1, 4, 5, 6), (3, 4, 3, 3), (3,))]


def test_no_call_is_remembered_while_a_graph_is_captured(
    memories: tuple[dict[object, object], ...],
    capturing: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with convsmith.simulator(), convsmith.use_kernel("direct"):
        for benchmark, state, remembered in (
            (True, True, 0),  # to be measured, and put off
            (True, False, 1),
            (False, True, 2),  # not to be measured, and so a kind of call of its own
        ):
            monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
            capturing.append(state)
            convsmith.conv2d(*operands())
            assert [len(memory) for memory in memories] == [remembered] * 2


def test_a_training_step_has_three_kinds_of_convolutions(
    memories: tuple[dict[object, object], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are chosen before the forward are those that run, and are measured once."""
    wanted = []

    def note(spec: ConvSpec, device: torch.device, *_: object, **__: object) -> Plan:
        wanted.append(spec)
        return planner.plan_for(spec, device)

    monkeypatch.setattr(execute, "takes", lambda device_type: True)
    monkeypatch.setattr(choice, "chosen_plan", note)
    x, w, b = (tensor.requires_grad_() for tensor in operands())
    geometry = ((1, 1), (0, 0), (1, 1), 1)
    assert execute.prefers_torch(x, w, b, *geometry)
    with torch.no_grad():
        y = execute.forward(x, w, b, *geometry)
        execute.input_gradient(y, w, x, *geometry)
        execute.weight_gradient(y, x, w, *geometry, True)
    assert len(wanted) > 3
    assert len(set(wanted)) == 3


def test_contenders_are_compiled_together_before_they_are_timed(
    memories: tuple[dict[object, object], ...],
    stopwatch: Stopwatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[list[str]] = []

    def compile_ahead(plans: Sequence[Plan], device: torch.device) -> None:
        assert (device, stopwatch.trials) == (H200, [])
        compiled.append([plan.candidates[0].reason for plan in plans])

    monkeypatch.setattr(choice, "compile_ahead", compile_ahead)
    monkeypatch.setattr(execute, "DeviceLaunch", lambda plan, device: plan)
    stopwatch.times["as near on 132"] = 0.5
    with FakeTensorMode():
        x, w = (torch.empty(s, device=H200) for s in (WANTED.input_shape, WANTED.weight_shape))
        for _ in range(2):
            launch = execute.forward_launch(x, w, None, (1, 1), (0, 0), (1, 1), 1)
            assert launch.candidates[0].reason == "as near on 132"
    assert compiled == stopwatch.trials == [CONTENDERS]
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    execute.forward_launch(x, w, None, (1, 1), (0, 0), (1, 1), 1)
    assert compiled == [CONTENDERS]


def test_what_may_come_to_run(stopwatch: Stopwatch) -> None:
    """For kernels to be compiled ahead of being measured."""
    plans = choice.plans_in_question(WANTED, H200)
    assert [plan.candidates[0].reason for plan in plans] == CONTENDERS
    plans = choice.plans_in_question(WANTED, H200, "wide")
    assert [plan.configuration for plan in plans] == ["wide on 132", "wide on 132 in way 2"]
    (plan,) = choice.plans_in_question(WANTED, torch.device("cpu"))
    assert plan.kernel == "torch"
    assert stopwatch.trials == []
