"""Timing candidates: everything real but the clock, with the simulator in the GPU's place."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from clocks import InventedClock
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from convsmith import planner, pytorch_convolution, timing, trial
from convsmith.errors import CompilationError
from convsmith.launch import SimulatedLaunch
from convsmith.planner import Candidate, Plan
from convsmith.spec import ConvSpec, Direction

CPU = torch.device("cpu")
TORCH = Candidate("torch", 1.0, "PyTorch's own")


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(trial, "DeviceLaunch", lambda plan, device: SimulatedLaunch(plan))
    monkeypatch.setattr(InventedClock, "APART", 3)
    monkeypatch.setattr(timing, "CudaClock", InventedClock)
    monkeypatch.setattr(timing, "REPEATS", 2)


def wanted(direction: Direction, layout: str = "nchw") -> ConvSpec:
    x, w, dy = torch.randn(2, 4, 7, 6), torch.randn(6, 4, 3, 2), torch.randn(2, 6, 5, 5)
    if layout == "channels_last":
        x, dy = (one.contiguous(memory_format=torch.channels_last) for one in (x, dy))
    elif layout == "expanded":
        x, dy = x[:1, :1].expand_as(x), dy[:1, :1, :1, :1].expand_as(dy)
    has_bias = direction is not Direction.GRAD_INPUT
    upstream = None if direction is Direction.FORWARD else dy
    return ConvSpec.of(direction, x, w, has_bias, (1, 1), (0, 0), (1, 1), 1, upstream)


def direct(spec: ConvSpec) -> Candidate:
    plan = planner.plan_for(spec, CPU, "direct", simulate=True)
    return replace(plan.candidates[0], predicted_ms=2.0)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "expanded"])
@pytest.mark.parametrize("direction", Direction)
def test_every_candidate_computes_the_same(direction: Direction, layout: str) -> None:
    spec = wanted(direction, layout)
    operands = trial._Operands.draw(spec, CPU)
    results = []
    for candidate in (TORCH, direct(spec)):
        call = trial._call_of(candidate, spec, CPU, operands)
        assert call is not None
        result = call()
        results.append(result[0] if isinstance(result, tuple) else result)
    theirs, ours = results
    assert (ours.shape, ours.stride()) == (spec.result_shape, spec.result_strides)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert theirs.std() > 0.1


@pytest.mark.parametrize("direction", Direction)
def test_candidates_are_told_with_their_times(direction: Direction) -> None:
    spec = wanted(direction)
    candidates = [direct(spec), TORCH]
    assert trial.measured(spec, CPU, candidates) == [
        replace(candidate, measured_ms=3.0) for candidate in candidates
    ]


def test_the_random_state_stays() -> None:
    before = torch.get_rng_state()
    spec = wanted(Direction.FORWARD)
    state = torch.get_rng_state()
    trial.measured(spec, CPU, [direct(spec), TORCH])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(before, state)


def refuse(*_: object) -> SimulatedLaunch:
    raise CompilationError("refused")


def test_a_kernel_that_does_not_compile_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = wanted(Direction.FORWARD)

    def launch(plan: Plan, device: torch.device) -> SimulatedLaunch:
        return refuse() if plan.candidates[0].reason == "refused" else SimulatedLaunch(plan)

    monkeypatch.setattr(trial, "DeviceLaunch", launch)
    timed = trial.measured(
        spec, CPU, [replace(direct(spec), reason="refused"), TORCH, direct(spec)]
    )
    assert [one.kernel for one in timed] == ["torch", "direct"]


def test_without_an_own_kernel_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = wanted(Direction.FORWARD)
    monkeypatch.setattr(trial, "DeviceLaunch", refuse)
    monkeypatch.setattr(timing, "alternate", refuse)
    assert trial.measured(spec, CPU, [TORCH, direct(spec)]) == []


def test_pytorchs_convolution_is_left_out_where_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """But what says that memory ran out goes on: own kernels may have run out of it as well."""
    spec = wanted(Direction.FORWARD)

    def fail(*_: object) -> Tensor:
        raise RuntimeError("FIND was unable to find an engine to execute this computation")

    def run_out(*_: object) -> Tensor:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(pytorch_convolution, "forward", fail)
    assert [one.kernel for one in trial.measured(spec, CPU, [TORCH, direct(spec)])] == ["direct"]
    monkeypatch.setattr(pytorch_convolution, "forward", run_out)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        trial.measured(spec, CPU, [TORCH, direct(spec)])


# --- Nobody sees it.


class Watching(TorchDispatchMode):
    """Fails at every operator."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        raise AssertionError(f"{function} was seen")


class Claiming(TorchFunctionMode):
    """Fails at every function."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        raise AssertionError(f"{function} was seen")


@pytest.mark.parametrize("mode", [Watching, Claiming, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("direction", Direction)
def test_under_a_mode(direction: Direction, mode: type) -> None:
    spec = wanted(direction)
    candidates = [direct(spec), TORCH]
    with mode():
        timed = trial.measured(spec, CPU, candidates)
    assert len(timed) == 2


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.func.vmap(f)(x),
        lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
        lambda f, x: torch.func.jvp(f, (x,), (x,)),
        lambda f, x: torch.func.functionalize(f)(x),
        lambda f, x: torch.fx.experimental.proxy_tensor.make_fx(f)(x),
    ],
    ids=["vmap", "grad", "jvp", "functionalize", "make_fx"],
)
def test_under_a_transform(transform) -> None:
    spec = wanted(Direction.FORWARD)
    candidates = [direct(spec), TORCH]
    timed = []

    def function(x: Tensor) -> Tensor:
        timed[:] = trial.measured(spec, CPU, candidates)
        return x + 1

    result = transform(function, torch.randn(2, 3))
    assert len(timed) == 2
    if isinstance(result, torch.fx.GraphModule):
        assert len(list(result.graph.nodes)) == 3  # x, its sum, the output


def test_no_operand_is_recorded() -> None:
    with trial.unobserved():
        operands = trial._Operands.draw(wanted(Direction.FORWARD), CPU)
        operands.input.requires_grad_()
        output = pytorch_convolution.forward(
            operands.input, operands.weight, None, (1, 1), (0, 0), (1, 1), 1
        )
    assert not output.requires_grad
